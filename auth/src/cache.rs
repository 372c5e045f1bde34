//! Tokens that were verified already, so that a storm of reconnects costs one signature a token.
//!
//! Two generations of bounded maps: when the young one is full it becomes the old one, and what is used again moves up.
//! Keyed by SHA-256, so that no token is kept. An entry is as good as the version of the keys it was verified under.

use std::{collections::HashMap, mem, sync::Arc};

use crate::Principal;

/// Entries a generation.
const ENTRIES: usize = 4096;

#[derive(Default)]
pub(crate) struct Cache {
    young: HashMap<[u8; 32], Verified>,
    old: HashMap<[u8; 32], Verified>,
}

#[derive(Clone)]
pub(crate) struct Verified {
    pub(crate) principal: Arc<Principal>,
    /// The version of the keys that it was verified under.
    pub(crate) version: u64,
    /// When it ends, leeway included, in seconds since 1970.
    pub(crate) until: u64,
}

impl Cache {
    pub(crate) fn get(&mut self, hash: &[u8; 32], version: u64, now: u64) -> Option<Arc<Principal>> {
        if let Some(entry) = self.old.remove(hash) {
            self.put(*hash, entry);
        }
        let entry = self.young.get(hash).filter(|e| e.version == version && now <= e.until)?;
        Some(Arc::clone(&entry.principal))
    }

    pub(crate) fn put(&mut self, hash: [u8; 32], entry: Verified) {
        if self.young.len() >= ENTRIES {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(hash, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Credential, Scopes};

    #[test]
    fn e42_the_cache_is_bounded_and_forgets_what_ended_or_changed() {
        let principal = Arc::new(Principal {
            tenant: "t".into(),
            subject: "s".into(),
            scopes: Scopes::default(),
            expires: None,
            credential: Credential::Process,
        });
        let entry = Verified { principal, version: 1, until: 10 };
        let mut cache = Cache::default();
        let used = [7; 32];
        cache.put(used, entry.clone());
        for n in 0..5 * ENTRIES {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&n.to_be_bytes());
            cache.put(hash, entry.clone());
            if n % 100 == 0 {
                assert!(cache.get(&used, 1, 10).is_some(), "what is used stays");
            }
        }
        assert!(cache.young.len() + cache.old.len() <= 2 * ENTRIES);
        assert!(cache.get(&used, 2, 10).is_none(), "the keys have changed");
        assert!(cache.get(&used, 1, 11).is_none(), "it has ended");
    }
}
