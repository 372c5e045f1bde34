//! What callers ask about their schedules: put, get, list, delete.

use bytes::Bytes;
use prost::Message as _;
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
    engine::{Engine, PAGE_BYTES, new_epoch, place_of},
    error::EngineError,
    job::index,
    store::{CommitOutcome, Expect, Extent, IndexChange},
};

/// How many schedules are loaded at once for a page.
const LOAD: usize = 16;

/// On whose behalf: without a caller the internal one, who sees the whole tenant.
fn caller_of(caller: Option<Caller>) -> Caller {
    caller.unwrap_or_else(|| Caller {
        tenant: "default".into(),
        subject: "internal".into(),
        whole_tenant: true,
    })
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
        let limit = match request.page_size {
            0 => 50,
            n @ 1..=200 => n as usize,
            _ => return Err(EngineError::Invalid(vec![("page_size", "must be 1 to 200".into())])),
        };
        let mut before = place_of(&request.page_token)?;
        let caller = caller_of(request.caller);
        let index = match caller.whole_tenant {
            true => index::schedules_of_tenant(&caller.tenant),
            false => index::schedules_of(&caller.tenant, &caller.subject),
        };
        let (mut schedules, mut bytes, mut more) = (Vec::new(), 0, true);
        while more && schedules.len() < limit && bytes < PAGE_BYTES {
            let batch = LOAD.min(limit - schedules.len());
            let keys = self.store.list(&index, before.clone(), batch).await?;
            more = keys.len() == batch;
            let there = self.store.load(keys.iter().map(|(_, stream)| stream.clone()).collect()).await?;
            before = keys.into_iter().last().or(before);
            for snapshot in there.into_iter().flatten() {
                let schedule = Record::decode_snapshot(&snapshot)?.schedule;
                bytes += schedule.encoded_len();
                schedules.push(schedule);
            }
        }
        let next = before.filter(|_| more).map(|(due, stream)| format!("{due}.{stream}"));
        Ok(ListSchedulesResponse { schedules, next_page_token: next.unwrap_or_default() })
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
