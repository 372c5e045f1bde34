//! Where a stream's keys lie on a Cluster: in which partition of the log, and under which hash tag.
//!
//! A Cluster spreads keys over 16,384 slots by the CRC16 of what stands in braces, and one script may touch one slot
//! only. So the log has [`PARTITIONS`], each under a tag of its own, chosen so that they lie evenly over the slots and
//! thus over masters; a stream and everything that its commits move lie in one of them. The number is fixed, because
//! a stream would not be found under another. Does not: know which server has a slot ([`super::cluster`]).

use xxhash_rust::xxh3::xxh3_64;

/// How many parts a log has on a Cluster: enough for as many masters, few enough to be asked all at once.
pub(super) const PARTITIONS: usize = 16;

const SLOTS: usize = 16384;

/// The tags of the partitions of a namespace, in the order of their slots.
pub(super) fn tags(namespace: &str) -> Vec<String> {
    let width = SLOTS / PARTITIONS;
    let mut found = vec![None; PARTITIONS];
    let (mut n, mut left) = (0u32, PARTITIONS);
    while left > 0 {
        // A namespace has no dot, so no tag is another namespace's.
        let tag = format!("{namespace}.{n}");
        let place = &mut found[usize::from(slot(&tag)) / width];
        if place.is_none() {
            *place = Some(tag);
            left -= 1;
        }
        n += 1;
    }
    found.into_iter().flatten().collect()
}

/// The slot of everything under a tag: CRC16/XMODEM, as the Cluster specification has it.
pub(super) fn slot(tag: &str) -> u16 {
    let crc = tag.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % 16384
}

/// The partition, of this many, of a stream, or of a member `<stream>` or `<stream>/…` of an index.
///
/// A job's is in the last two bytes of its id ([`crate::engine::new_job_id`]), any other stream's is made of its name.
pub(super) fn partition(name: &str, of: usize) -> usize {
    if of == 1 {
        return 0;
    }
    let place = job_place(name.as_bytes()).unwrap_or_else(|| {
        let [first, second, ..] = xxh3_64(name.as_bytes()).to_be_bytes();
        u16::from_be_bytes([first, second])
    });
    (usize::from(place) * of) >> 16
}

fn job_place(name: &[u8]) -> Option<u16> {
    let id = name.get(..36)?;
    let shaped = id.iter().enumerate().all(|(i, byte)| match i {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    if !shaped || name.get(36).is_some_and(|byte| *byte != b'/') {
        return None;
    }
    u16::from_str_radix(std::str::from_utf8(&id[32..]).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_redis_s() {
        // What `CLUSTER KEYSLOT` answers.
        assert_eq!((slot("123456789"), slot("foo"), slot("")), (12739, 12182, 0));
    }

    #[test]
    fn partitions_lie_evenly_and_stay_where_they_are() {
        let tags = tags("tidegate");
        let slots: Vec<_> = tags.iter().map(|tag| usize::from(slot(tag)) / 1024).collect();
        assert_eq!(slots, (0..16).collect::<Vec<_>>());
        assert_eq!(super::tags("tidegate"), tags);
    }

    #[test]
    fn a_member_is_found_where_its_stream_is() {
        let id = "01980000-0000-7000-8000-0000000ca5e5";
        assert_eq!(partition(id, PARTITIONS), 0xa);
        assert_eq!(partition(&format!("{id}/17"), PARTITIONS), 0xa);
        assert_eq!(partition(id, 1), 0);
        let mut seen = [0; PARTITIONS];
        for n in 0..1600 {
            seen[partition(&format!("idem/{n}"), PARTITIONS)] += 1;
        }
        assert!(seen.iter().all(|n| (50..200).contains(n)), "{seen:?}");
    }
}
