//! Who calls the engine by gRPC, and on whose behalf.
//!
//! Without configured authentication every caller is believed. With it, every call needs a bearer token in its metadata:
//! a gateway's, which may speak for anybody (`engine:delegate`); a worker's (`engine:work`); or a user's own, which speaks
//! for that user only, within its scopes. Streams end when their token does, or is taken back. Health and reflection say
//! nothing about jobs, and ask nobody.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use tidegate_auth::{Authenticator, Principal, Refused, Scope};
use tidegate_proto::v1::{
    Caller, CancelJobRequest, DeleteJobRequest, DeleteScheduleRequest, GetJobRequest, GetScheduleRequest,
    ListJobsRequest, ListSchedulesRequest, PutScheduleRequest, ReadEventsRequest, RetryJobRequest,
    SubmitJobRequest, WatchJobRequest,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, metadata::MetadataMap};

/// A stream of answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The caller of requests that name none.
pub fn internal() -> Caller {
    Caller { tenant: "default".into(), subject: "internal".into(), whole_tenant: false }
}

/// Decides who may call.
#[derive(Clone, Debug)]
pub struct Access(Option<Authenticator>);

/// Somebody who may call; nobody in particular where nobody has to say.
#[derive(Clone, Debug)]
pub struct Admitted(Option<(Authenticator, Arc<Principal>)>);

/// A request that is made on somebody's behalf.
pub trait OnBehalf {
    /// That somebody.
    fn caller(&mut self) -> &mut Option<Caller>;
}

macro_rules! on_behalf {
    ($($request:ty),*) => {$(
        impl OnBehalf for $request {
            fn caller(&mut self) -> &mut Option<Caller> {
                &mut self.caller
            }
        }
    )*};
}

on_behalf!(
    SubmitJobRequest,
    GetJobRequest,
    ListJobsRequest,
    CancelJobRequest,
    RetryJobRequest,
    DeleteJobRequest,
    WatchJobRequest,
    ReadEventsRequest,
    PutScheduleRequest,
    GetScheduleRequest,
    ListSchedulesRequest,
    DeleteScheduleRequest
);

impl Access {
    /// By `auth`; without it everybody is believed.
    pub fn new(auth: Option<Authenticator>) -> Self {
        Self(auth)
    }

    /// The request, made on behalf of somebody for whom its sender may speak and who has `scope`.
    pub async fn admit<T: OnBehalf>(
        &self,
        request: Request<T>,
        scope: Scope,
    ) -> Result<(T, Admitted), Status> {
        let admitted = self.known(request.metadata()).await?;
        let mut request = request.into_inner();
        if let Admitted(Some((_, principal))) = &admitted {
            speak_for(principal, request.caller(), scope)?;
        }
        Ok((request, admitted))
    }

    /// A sender that has `scope` itself.
    pub async fn admit_own<T>(&self, request: &Request<T>, scope: Scope) -> Result<Admitted, Status> {
        let admitted = self.known(request.metadata()).await?;
        match &admitted.0 {
            Some((_, principal)) if !principal.scopes.allow(scope) => Err(lacks(scope)),
            _ => Ok(admitted),
        }
    }

    /// A sender that has said who it is.
    pub async fn known(&self, metadata: &MetadataMap) -> Result<Admitted, Status> {
        let Some(auth) = &self.0 else { return Ok(Admitted(None)) };
        let mut given = metadata.get_all("authorization").iter();
        let missing = || Status::unauthenticated("present a bearer token in the metadata `authorization`");
        let (Some(value), None) = (given.next(), given.next()) else { return Err(missing()) };
        let (scheme, token) =
            value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(missing());
        }
        let principal = auth.bearer(token.trim()).await.map_err(status)?;
        Ok(Admitted(Some((auth.clone(), principal))))
    }
}

/// Makes the request that of its sender, unless the sender may speak for others.
fn speak_for(principal: &Principal, caller: &mut Option<Caller>, scope: Scope) -> Result<(), Status> {
    if principal.scopes.allow(Scope::Delegate) {
        return Ok(());
    }
    if !principal.scopes.allow(scope) {
        return Err(lacks(scope));
    }
    let itself = Caller {
        tenant: principal.tenant.clone(),
        subject: principal.subject.clone(),
        whole_tenant: principal.scopes.allow(Scope::Admin),
    };
    let claimed = caller.replace(itself);
    match claimed {
        Some(claimed) if claimed.tenant != principal.tenant || claimed.subject != principal.subject => {
            Err(lacks(Scope::Delegate))
        }
        _ => Ok(()),
    }
}

fn lacks(scope: Scope) -> Status {
    Status::permission_denied(format!("this needs the scope {}", scope.name()))
}

fn status(refused: Refused) -> Status {
    match refused {
        Refused::Unavailable => Status::unavailable(refused.to_string()),
        _ => Status::unauthenticated(refused.to_string()),
    }
}

impl Admitted {
    /// The stream, until its token ends; the last item says so.
    pub fn limit<T: Send + 'static>(self, answers: ReceiverStream<Result<T, Status>>) -> Answers<T> {
        let Some((auth, principal)) = self.0 else { return Box::pin(answers) };
        let over = Box::pin(over(auth, principal));
        let both = (answers, Some(over));
        Box::pin(stream::unfold(both, |(mut answers, mut over)| async move {
            let end = over.as_mut()?;
            tokio::select! {
                biased;
                status = end => Some((Err(status), (answers, None))),
                answer = answers.next() => answer.map(|answer| (answer, (answers, over))),
            }
        }))
    }
}

/// Waits until the credential has ended or is taken back.
async fn over(auth: Authenticator, principal: Arc<Principal>) -> Status {
    let mut changes = auth.changes();
    loop {
        changes.mark_unchanged();
        match auth.standing(&principal) {
            Ok(()) | Err(Refused::Unavailable) => {}
            Err(refused) => return status(refused),
        }
        // Looked at again now and then, because the clock may be set.
        let wait = principal.left().min(Duration::from_secs(60));
        let _ = tokio::time::timeout(wait, changes.changed()).await;
    }
}

#[cfg(test)]
mod tests {
    use tidegate_auth::{Credential, Scopes};

    use super::*;

    fn speak(scopes: &[Scope], claimed: Option<(&str, &str)>) -> Result<Option<Caller>, Status> {
        let principal = Principal {
            tenant: "acme".into(),
            subject: "alice".into(),
            scopes: scopes.iter().copied().collect::<Scopes>(),
            expires: None,
            credential: Credential::Process,
        };
        let mut caller = claimed.map(|(tenant, subject)| Caller {
            tenant: tenant.into(),
            subject: subject.into(),
            whole_tenant: true,
        });
        speak_for(&principal, &mut caller, Scope::Read).map(|()| caller)
    }

    #[test]
    fn only_gateways_speak_for_others() {
        assert_eq!(speak(&[Scope::Delegate], None).unwrap(), None);
        assert_eq!(speak(&[Scope::Delegate], Some(("x", "y"))).unwrap().unwrap().subject, "y");
        for claimed in [None, Some(("acme", "alice"))] {
            let itself = speak(&[Scope::Read], claimed).unwrap().unwrap();
            assert_eq!((&*itself.tenant, &*itself.subject, itself.whole_tenant), ("acme", "alice", false));
            assert!(speak(&[Scope::Admin], claimed).unwrap().unwrap().whole_tenant);
            assert!(speak(&[Scope::Submit, Scope::Work], claimed).is_err());
        }
        for claimed in [Some(("acme", "bob")), Some(("other", "alice")), Some(("", ""))] {
            assert!(speak(&[Scope::Read, Scope::Admin], claimed).is_err(), "{claimed:?}");
        }
    }
}
