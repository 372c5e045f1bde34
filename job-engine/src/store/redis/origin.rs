//! Whether the log is still the one that it was: a token beside it, and the identity of the server that holds it.
//!
//! The token (key `{ns}o`) is made with the first connection ever; another one, or none, means that everything was
//! lost (FLUSHALL, a restart without persistence). A server that is another process, or has another replication
//! history, may have lost the end of what was committed. Either raises the [`generation`](Origin::generation), and
//! wakes those who can make good what is missing ([`super::tail`]). Does not: know what was lost.

use std::sync::Arc;

use parking_lot::Mutex;
use redis::{Value, aio::MultiplexedConnection, cmd};
use tokio::sync::watch;

use super::{errors::typed, inspect::Facts};
use crate::store::StoreError;

/// What is known of the log's origin.
pub(super) struct Origin {
    key: String,
    known: Mutex<Known>,
    generation: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    identity: Option<String>,
    token: Option<String>,
}

impl Origin {
    pub(super) fn new(key: String) -> Arc<Self> {
        Arc::new(Self { key, known: Mutex::default(), generation: watch::channel(0).0 })
    }

    /// How often the log may have lost something since this process knows it.
    pub(super) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Tells of every new generation.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Looks at the token over a connection that may be new.
    pub(super) async fn observe(
        &self,
        connection: &mut MultiplexedConnection,
        facts: &Facts,
    ) -> Result<(), StoreError> {
        let ask = |error| typed(&error);
        let mut token: Option<String> =
            cmd("GET").arg(&self.key).query_async(connection).await.map_err(ask)?;
        if token.is_none() {
            let fresh = format!("{:016x}", rand::random::<u64>());
            let mut set = cmd("SET");
            set.arg(&self.key).arg(&fresh).arg("NX");
            match set.query_async::<Value>(connection).await.map_err(ask) {
                Ok(Value::Nil) => {
                    token = cmd("GET").arg(&self.key).query_async(connection).await.map_err(ask)?;
                }
                Ok(_) => token = Some(fresh),
                // Memory is full: the log is usable without.
                Err(StoreError::Full(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut known = self.known.lock();
        let emptied = known.token.is_some() && known.token != token;
        let replaced = known.identity.is_some() && known.identity != facts.identity;
        (known.token, known.identity) = (token, facts.identity.clone());
        drop(known);
        if emptied {
            tracing::error!("Redis has lost everything it held: jobs that are not in memory here are gone");
        } else if replaced {
            tracing::warn!(
                "Redis was restarted, or another server took over: looking whether events were lost"
            );
        }
        if emptied || replaced {
            self.generation.send_modify(|generation| *generation += 1);
        }
        Ok(())
    }
}
