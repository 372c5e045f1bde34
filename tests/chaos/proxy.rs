//! A TCP proxy whose connections can be cut; with several targets, each connection goes to one that answers.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use rand::seq::SliceRandom as _;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub(crate) struct Proxy {
    address: SocketAddr,
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Proxy {
    /// Forwards to the targets from now on.
    pub(crate) async fn start(targets: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let accepted = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut targets = targets.clone();
                targets.shuffle(&mut rand::rng());
                let mut accepted = accepted.lock();
                while accepted.try_join_next().is_some() {}
                accepted.spawn(async move {
                    for target in targets {
                        if let Ok(mut far) = TcpStream::connect(target).await {
                            let _ = near.set_nodelay(true).and(far.set_nodelay(true));
                            let _ = copy_bidirectional(&mut near, &mut far).await;
                            return;
                        }
                    }
                });
            }
        });
        Self { address, connections }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Cuts every connection, in the middle of whatever it carries.
    pub(crate) fn cut(&self) {
        self.connections.lock().abort_all();
    }
}
