//! Where an engine is reached: a client of each of its services, by its address.

use tidegate_proto::v1::{
    ListKindsRequest, job_service_client::JobServiceClient, worker_service_client::WorkerServiceClient,
};
use tonic::transport::Channel;

/// Where an engine listens.
pub(crate) struct At {
    pub(crate) url: String,
}

impl At {
    /// Whether an engine answers here.
    pub(crate) async fn is_up(&self) -> bool {
        let channel = Channel::from_shared(self.url.clone()).expect("a url").connect().await;
        match channel {
            Ok(channel) => JobServiceClient::new(channel).list_kinds(ListKindsRequest {}).await.is_ok(),
            Err(_) => false,
        }
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(self.url.clone()).expect("a url").connect().await.expect("the engine answers")
    }

    pub(crate) async fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel().await)
    }

    pub(crate) async fn workers(&self) -> WorkerServiceClient<Channel> {
        WorkerServiceClient::new(self.channel().await)
    }
}
