//! Commands to a server under test, with their answers understood.

use std::time::Duration;

use crate::redis_server::RedisServer;

const PATIENCE: Duration = Duration::from_secs(10);

impl RedisServer {
    /// Sends one command and returns what it answers.
    pub(crate) fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut connection = redis::Client::open(self.url())?.get_connection_with_timeout(PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)
    }
}
