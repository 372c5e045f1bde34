//! Which engine comes next: one pure decision.
//!
//! Only the healthiest kind there is comes into question, so an engine that is away gets nothing while another
//! answers, and everything is tried when none does. Among equals, the less loaded of two random ones: a newcomer fills
//! up without being stormed (M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).

/// What is known of an engine, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    /// It said that it serves.
    Serving,
    /// It has not been asked yet, or something on it broke since.
    Unknown,
    /// It said that it does not serve: it drains, or its log is away.
    NotServing,
    /// It does not answer.
    Unreachable,
}

/// An engine as the choice sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) health: Health,
    /// Streams and calls of ours that are open on it.
    pub(super) load: usize,
    /// Whether it just failed the caller.
    pub(super) avoid: bool,
}

/// Chooses; nothing only if there are no candidates. `random(n)` is uniform below `n`.
pub(super) fn choose(candidates: &[Candidate], mut random: impl FnMut(usize) -> usize) -> Option<usize> {
    let best = candidates.iter().map(|c| c.health).min()?;
    let mut equals: Vec<usize> = (0..candidates.len()).filter(|n| candidates[*n].health == best).collect();
    if equals.iter().any(|n| !candidates[*n].avoid) {
        equals.retain(|n| !candidates[*n].avoid);
    }
    let one = equals.swap_remove(random(equals.len()));
    if equals.is_empty() {
        return Some(one);
    }
    let other = equals[random(equals.len())];
    Some(if candidates[other].load < candidates[one].load { other } else { one })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate() -> impl Strategy<Value = Candidate> {
        use Health::{NotServing, Serving, Unknown, Unreachable};
        let health = prop::sample::select(vec![Serving, Unknown, NotServing, Unreachable]);
        (health, 0usize..5, any::<bool>()).prop_map(|(health, load, avoid)| Candidate { health, load, avoid })
    }

    proptest! {
        #[test]
        fn the_choice_is_the_best_there_is(
            all in prop::collection::vec(candidate(), 0..6), seeds in prop::collection::vec(any::<usize>(), 2),
        ) {
            let mut seeds = seeds.into_iter();
            let Some(chosen) = choose(&all, |n| seeds.next().unwrap() % n) else {
                prop_assert!(all.is_empty());
                return Ok(());
            };
            let chosen = all[chosen];
            let best = all.iter().map(|c| c.health).min().unwrap();
            prop_assert_eq!(chosen.health, best);
            let equals = || all.iter().filter(|c| c.health == best);
            prop_assert!(!chosen.avoid || equals().all(|c| c.avoid));
            let heaviest = equals().filter(|c| c.avoid == chosen.avoid).map(|c| c.load).max().unwrap();
            let lightest = equals().filter(|c| c.avoid == chosen.avoid).map(|c| c.load).min().unwrap();
            let several = equals().filter(|c| c.avoid == chosen.avoid).count() > 1;
            let alone_heaviest = several && heaviest > lightest
                && equals().filter(|c| c.avoid == chosen.avoid && c.load == heaviest).count() == 1;
            prop_assert!(!alone_heaviest || chosen.load < heaviest, "the most loaded one was chosen");
        }
    }
}
