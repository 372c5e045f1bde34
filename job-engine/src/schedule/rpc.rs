//! `ScheduleService`: thin translations between the contract and the engine.

use tidegate_auth::Scope;
use tidegate_proto::v1::{
    DeleteScheduleRequest, DeleteScheduleResponse, GetScheduleRequest, GetScheduleResponse,
    ListSchedulesRequest, ListSchedulesResponse, PutScheduleRequest, PutScheduleResponse,
    schedule_service_server::ScheduleService,
};
use tonic::{Request, Response, Status};

use crate::rpc::Services;

#[tonic::async_trait]
impl ScheduleService for Services {
    async fn put_schedule(
        &self,
        request: Request<PutScheduleRequest>,
    ) -> Result<Response<PutScheduleResponse>, Status> {
        let (request, _) = self.access.admit(request, Scope::Submit).await?;
        let (schedule, created) = self.engine.put_schedule(request).await?;
        Ok(Response::new(PutScheduleResponse { schedule: Some(schedule), created }))
    }

    async fn get_schedule(
        &self,
        request: Request<GetScheduleRequest>,
    ) -> Result<Response<GetScheduleResponse>, Status> {
        let (GetScheduleRequest { caller, name, owner }, _) = self.access.admit(request, Scope::Read).await?;
        let schedule = self.engine.get_schedule(caller, &owner, &name).await?;
        Ok(Response::new(GetScheduleResponse { schedule: Some(schedule) }))
    }

    async fn list_schedules(
        &self,
        request: Request<ListSchedulesRequest>,
    ) -> Result<Response<ListSchedulesResponse>, Status> {
        let (request, _) = self.access.admit(request, Scope::Read).await?;
        Ok(Response::new(self.engine.list_schedules(request).await?))
    }

    async fn delete_schedule(
        &self,
        request: Request<DeleteScheduleRequest>,
    ) -> Result<Response<DeleteScheduleResponse>, Status> {
        let (DeleteScheduleRequest { caller, name, owner }, _) =
            self.access.admit(request, Scope::Control).await?;
        self.engine.delete_schedule(caller, &owner, &name).await?;
        Ok(Response::new(DeleteScheduleResponse {}))
    }
}
