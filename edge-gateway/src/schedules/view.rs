//! A schedule as JSON; what was not given is left out, so that it can be put again as it is shown.

use prost_types::Duration;
use serde::Serialize;
use tidegate_proto::v1::{Concurrency, JobOptions, Overlap, Schedule};
use utoipa::ToSchema;

use super::OverlapName;
use crate::json::{Document, Number, seconds, text, time};

/// A schedule. Times are RFC 3339 in UTC with milliseconds; what is not known yet is left out.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Schedule)]
pub(super) struct ScheduleView<'a> {
    name: &'a str,
    kind: &'a str,
    #[schema(value_type = Value)]
    input: Document<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<OptionsView<'a>>,
    cron: &'a str,
    time_zone: &'a str,
    overlap: OverlapName,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    catch_up_seconds: Option<Number>,
    paused: bool,
    tenant: &'a str,
    /// The subject that put it, who owns its jobs.
    owner: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    created_at: Option<String>,
    /// When it was last put otherwise than it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    updated_at: Option<String>,
    /// When it fires next; absent while paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    next_at: Option<String>,
    /// For which instant it made its last job.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    last_at: Option<String>,
    /// That job, whether it still exists or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = "uuid")]
    last_job_id: Option<&'a str>,
    /// How many firings made a job.
    fired: u64,
    /// How many made none, because the job before had not ended.
    skipped: u64,
    /// How many made none, because it would have been too late, or was refused.
    missed: u64,
}

/// Those options that were given.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ScheduleOptions)]
struct OptionsView<'a> {
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(value_type = Option<u32>)]
    max_attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    backoff_seconds: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    max_backoff_seconds: Option<Number>,
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(value_type = Option<u32>)]
    max_stalls: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    retention_seconds: Option<Number>,
    priority: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    timeout_seconds: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    progress_deadline_seconds: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<ConcurrencyView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_key: Option<&'a str>,
}

/// How many jobs with the same key run at once, in the whole tenant.
#[derive(Serialize, ToSchema)]
#[schema(as = ScheduleConcurrency)]
struct ConcurrencyView<'a> {
    key: &'a str,
    limit: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl<'a> From<&'a JobOptions> for OptionsView<'a> {
    fn from(options: &'a JobOptions) -> Self {
        let given = |duration: &Option<Duration>| duration.as_ref().map(seconds);
        let concurrency = |c: &'a Concurrency| ConcurrencyView { key: &c.key, limit: c.limit };
        Self {
            max_attempts: options.max_attempts,
            backoff_seconds: given(&options.backoff),
            max_backoff_seconds: given(&options.max_backoff),
            max_stalls: options.max_stalls,
            retention_seconds: given(&options.retention),
            priority: options.priority,
            timeout_seconds: given(&options.timeout),
            progress_deadline_seconds: given(&options.progress_deadline),
            concurrency: options.concurrency.as_ref().map(concurrency),
            unique_key: text(&options.unique_key),
        }
    }
}

impl<'a> From<&'a Schedule> for ScheduleView<'a> {
    fn from(schedule: &'a Schedule) -> Self {
        Self {
            name: &schedule.name,
            kind: &schedule.kind,
            input: Document::new(&schedule.input_json),
            options: schedule.options.as_ref().map(OptionsView::from),
            cron: &schedule.cron,
            time_zone: &schedule.time_zone,
            overlap: match schedule.overlap() {
                Overlap::Allow => OverlapName::Allow,
                Overlap::Skip | Overlap::Unspecified => OverlapName::Skip,
            },
            catch_up_seconds: schedule.catch_up.as_ref().map(seconds),
            paused: schedule.paused,
            tenant: &schedule.tenant,
            owner: &schedule.owner,
            created_at: schedule.created_at.as_ref().map(time),
            updated_at: schedule.updated_at.as_ref().map(time),
            next_at: schedule.next_at.as_ref().map(time),
            last_at: schedule.last_at.as_ref().map(time),
            last_job_id: text(&schedule.last_job_id),
            fired: schedule.fired,
            skipped: schedule.skipped,
            missed: schedule.missed,
        }
    }
}
