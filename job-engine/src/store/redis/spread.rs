//! One request to several partitions, and one answer of theirs.

use futures_util::future::{join_all, try_join_all};

use super::{partition::Partition, slots};
use crate::store::StoreError;

/// Gathers up to `n` members from partitions: each is asked for its share, then those that had as many as that for what
/// is missing. One that fails is left out, unless all do.
pub(super) async fn gather<'p, F>(
    mut parts: Vec<&'p Partition>,
    n: usize,
    ask: impl Fn(&'p Partition, usize) -> F,
) -> Result<Vec<String>, StoreError>
where
    F: Future<Output = Result<Vec<String>, StoreError>>,
{
    let (mut found, mut answered, mut failure) = (Vec::new(), parts.is_empty(), None);
    while found.len() < n && !parts.is_empty() {
        let missing = n - found.len();
        let later = parts.split_off(missing.min(parts.len()));
        let (share, more) = (missing / parts.len(), missing % parts.len());
        let shares = (0..parts.len()).map(|i| share + usize::from(i < more));
        let asked: Vec<_> = parts.into_iter().zip(shares).collect();
        let answers = join_all(asked.iter().map(|&(part, share)| ask(part, share))).await;
        parts = later;
        for ((part, share), answer) in asked.into_iter().zip(answers) {
            match answer {
                Ok(members) => {
                    answered = true;
                    if members.len() >= share {
                        parts.push(part);
                    }
                    found.extend(members);
                }
                Err(error) => {
                    tracing::debug!(%error, "a part of the log is left out");
                    failure = Some(error);
                }
            }
        }
    }
    match failure {
        Some(error) if !answered => Err(error),
        _ => Ok(found),
    }
}

/// Asks each partition about those of the names that are its, and answers in the order of the names.
pub(super) async fn apart<'p, T, F>(
    partitions: &'p [Partition],
    names: Vec<String>,
    ask: impl Fn(&'p Partition, Vec<String>) -> F,
) -> Result<Vec<T>, StoreError>
where
    F: Future<Output = Result<Vec<T>, StoreError>>,
{
    let mut places = vec![(Vec::new(), Vec::new()); partitions.len()];
    let total = names.len();
    for (i, name) in names.into_iter().enumerate() {
        let (numbers, names) = &mut places[slots::partition(&name, partitions.len())];
        numbers.push(i);
        names.push(name);
    }
    let concerned = places.into_iter().zip(partitions).filter(|((numbers, _), _)| !numbers.is_empty());
    let asked = concerned.map(|((numbers, names), partition)| {
        let answer = ask(partition, names);
        async move { Ok::<_, StoreError>((numbers, answer.await?)) }
    });
    let mut found: Vec<(usize, T)> = Vec::with_capacity(total);
    for (numbers, answers) in try_join_all(asked).await? {
        found.extend(numbers.into_iter().zip(answers));
    }
    found.sort_unstable_by_key(|(i, _)| *i);
    if found.len() < total {
        return Err(StoreError::Damaged("the server answered less than it was asked".into()));
    }
    Ok(found.into_iter().map(|(_, answer)| answer).collect())
}
