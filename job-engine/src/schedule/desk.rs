//! What callers ask about their schedules: put, get, list, delete.

use bytes::Bytes;
use tidegate_proto::{
    limits::MAX_SCHEDULES,
    v1::{Caller, ListSchedulesRequest, ListSchedulesResponse, PutScheduleRequest, Schedule},
};

use super::{
    Record, check,
    fire::{self, HOLD, Stored},
    stream,
};
use crate::{
    access::internal,
    engine::{Engine, new_epoch},
    error::EngineError,
    job::index,
    page::page,
    store::{CommitOutcome, Expect, Extent, IndexChange, Snapshot},
};

/// On whose behalf: without a caller the internal one, who sees the whole tenant.
fn caller_of(caller: Option<Caller>) -> Caller {
    caller.unwrap_or_else(|| Caller { whole_tenant: true, ..internal() })
}

/// Where the caller's schedule of this name is, or that of `owner` if the caller may see it.
fn place(caller: Option<Caller>, owner: &str, name: &str) -> Result<String, EngineError> {
    let caller = caller_of(caller);
    match owner {
        "" => Ok(stream(&caller.tenant, &caller.subject, name)),
        owner if caller.whole_tenant || owner == caller.subject => Ok(stream(&caller.tenant, owner, name)),
        // Whether there is one, is none of the caller's business.
        _ => Err(EngineError::ScheduleNotFound),
    }
}

impl Engine {
    /// Makes or replaces a schedule of the caller's. The flag says whether it is new.
    pub async fn put_schedule(&self, request: PutScheduleRequest) -> Result<(Schedule, bool), EngineError> {
        let least = self.bounds.schedule_distance;
        let (wanted, timetable) =
            check(request.schedule.unwrap_or_default(), &caller_of(request.caller), least)?;
        self.known_kind(&wanted.kind).await?;
        let stream = stream(&wanted.tenant, &wanted.owner, &wanted.name);
        loop {
            let old = match fire::load(self, &stream).await? {
                // Its firing is finished as it was: its job may be made already.
                Some(stored) => match fire::finish(self, stored).await? {
                    Some(stored) => Some(stored),
                    None => continue,
                },
                None => None,
            };
            let now_ms = self.store.now_ms();
            let Some(record) =
                Record::put(old.as_ref().map(|old| &old.0), wanted.clone(), &timetable, now_ms)
            else {
                let Some((old, head)) = old else { continue };
                self.store.confirm(&stream, &head).await?;
                return Ok((old.schedule, false));
            };
            let is_new = old.is_none();
            let mut changes = vec![record.due(now_ms, HOLD)];
            let expect = match old {
                Some((_, head)) => Expect::At(head),
                None => {
                    self.room_for_schedule(&wanted).await?;
                    changes.extend(lists(&wanted).map(|index| IndexChange::Put {
                        index,
                        member: stream.clone(),
                        after: std::time::Duration::ZERO,
                    }));
                    Expect::Absent { epoch: new_epoch(), fixed: Bytes::new() }
                }
            };
            if let CommitOutcome::Committed(head) =
                self.store.commit(fire::change_of(&record, expect, changes)).await?
            {
                self.store.confirm(&stream, &head).await?;
                return Ok((record.schedule, is_new));
            }
        }
    }

    /// A schedule, if the caller may see it.
    pub async fn get_schedule(
        &self,
        caller: Option<Caller>,
        owner: &str,
        name: &str,
    ) -> Result<Schedule, EngineError> {
        Ok(self.schedule(caller, owner, name).await?.1.0.schedule)
    }

    /// Removes a schedule; its jobs stay.
    pub async fn delete_schedule(
        &self,
        caller: Option<Caller>,
        owner: &str,
        name: &str,
    ) -> Result<(), EngineError> {
        let (stream, (mut record, mut head)) = self.schedule(caller, owner, name).await?;
        loop {
            let from = |index| IndexChange::Remove { index, member: stream.clone() };
            let all = lists(&record.schedule).into_iter().chain([index::FIRINGS.to_owned()]);
            match self.store.delete(&stream, head, all.map(from).collect()).await? {
                CommitOutcome::Committed(_) => return Ok(()),
                CommitOutcome::Conflict(None) => return Err(EngineError::ScheduleNotFound),
                CommitOutcome::Conflict(Some(now)) => {
                    (record, head) = (Record::decode_snapshot(&now)?, now.head);
                }
            }
        }
    }

    /// A page of schedules, newest first.
    pub async fn list_schedules(
        &self,
        request: ListSchedulesRequest,
    ) -> Result<ListSchedulesResponse, EngineError> {
        let caller = caller_of(request.caller);
        let index = match caller.whole_tenant {
            true => index::schedules_of_tenant(&caller.tenant),
            false => index::schedules_of(&caller.tenant, &caller.subject),
        };
        let wanted = |snapshot: &Snapshot| Ok(Some(Record::decode_snapshot(snapshot)?.schedule));
        let (schedules, next_page_token) =
            page(&*self.store, &index, request.page_size, &request.page_token, wanted).await?;
        Ok(ListSchedulesResponse { schedules, next_page_token })
    }

    async fn schedule(
        &self,
        caller: Option<Caller>,
        owner: &str,
        name: &str,
    ) -> Result<(String, Stored), EngineError> {
        let stream = place(caller, owner, name)?;
        let stored = fire::load(self, &stream).await?.ok_or(EngineError::ScheduleNotFound)?;
        Ok((stream, stored))
    }

    /// Refuses one schedule too many. Those that are made at the same moment do not see each other.
    async fn room_for_schedule(&self, wanted: &Schedule) -> Result<(), EngineError> {
        let mine = Extent::Index(index::schedules_of(&wanted.tenant, &wanted.owner));
        match self.store.count(vec![mine]).await?.first() {
            Some(have) if *have >= MAX_SCHEDULES => {
                Err(EngineError::Full(format!("an owner has at most {MAX_SCHEDULES} schedules")))
            }
            _ => Ok(()),
        }
    }
}

/// The lists in which a schedule is.
fn lists(schedule: &Schedule) -> [String; 2] {
    let Schedule { tenant, owner, .. } = schedule;
    [index::schedules_of_tenant(tenant), index::schedules_of(tenant, owner)]
}
