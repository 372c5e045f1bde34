//! The events of a stream as the API document describes them (OpenAPI 3.2, "Server-Sent Event Streams").
//!
//! One list has every event with the type that the encoder writes; a test encodes one of each and looks it up here.

use serde_json::Value;
use tidegate_proto::limits::RESERVED_EVENT_NAMES;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, OneOfBuilder, Ref, RefOr, Schema, SchemaFormat, Type},
};

use super::{
    CancelledData, CompleteData, ConnectedData, FailedData, GapData, GoodbyeData, LogData, ProgressData,
    StateData,
};
use crate::{
    json::CheckpointView,
    openapi::{self, Schemas},
};

/// One event of a stream: its fields as an `EventSource` sees them.
pub(crate) struct ServerEvent;

/// One event of a stream of several jobs.
pub(crate) struct BundledEvent;

/// Every event: its name, or none for the worker's own; whether it carries an id; what its data is.
fn events(schemas: &mut Schemas) -> [(Option<&'static str>, bool, RefOr<Schema>); 11] {
    [
        (Some("connected"), false, of::<ConnectedData<'_>>(schemas)),
        (Some("state"), true, of::<StateData<'_>>(schemas)),
        (Some("progress"), true, of::<ProgressData<'_>>(schemas)),
        (Some("log"), true, of::<LogData<'_>>(schemas)),
        (Some("checkpoint"), true, of::<CheckpointView<'_>>(schemas)),
        (None, true, Value::schema()),
        (Some("complete"), true, of::<CompleteData<'_>>(schemas)),
        (Some("failed"), true, of::<FailedData<'_>>(schemas)),
        (Some("cancelled"), true, of::<CancelledData<'_>>(schemas)),
        (Some("gap"), true, of::<GapData<'_>>(schemas)),
        (Some("goodbye"), false, of::<GoodbyeData>(schemas)),
    ]
}

/// What names workers may choose.
fn custom() -> String {
    format!("^(?!({})$)[a-z][a-z0-9._-]{{0,63}}$", RESERVED_EVENT_NAMES.join("|"))
}

/// A reference to the type's schema, which goes into the document.
fn of<T: ToSchema>(schemas: &mut Schemas) -> RefOr<Schema> {
    openapi::describe::<T>(schemas);
    Ref::from_schema_name(T::name()).into()
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// One of the events, whose data are what `wrap` makes of those in the list.
fn any_event(wrap: impl Fn(Option<&str>, bool, RefOr<Schema>) -> RefOr<Schema>) -> RefOr<Schema> {
    let event = |(name, has_id, data): (Option<&str>, bool, RefOr<Schema>)| {
        let data = wrap(name, has_id, data);
        let name = match name {
            Some(name) => text().enum_values(Some([name])),
            None => text().pattern(Some(custom())).description(Some("A name that the worker chose")),
        };
        let data = text().content_media_type("application/json").content_schema(Some(data));
        let event = ObjectBuilder::new().property("event", name).required("event");
        let event = event.property("data", data).required("data");
        if has_id { event.property("id", text()).required("id") } else { event }
    };
    let events = events(&mut Vec::new()).into_iter().map(event);
    events.fold(OneOfBuilder::new(), OneOfBuilder::item).into()
}

impl PartialSchema for ServerEvent {
    fn schema() -> RefOr<Schema> {
        any_event(|_, _, data| data)
    }
}

impl PartialSchema for BundledEvent {
    fn schema() -> RefOr<Schema> {
        any_event(|name, has_id, data| {
            let uuid = text().format(Some(SchemaFormat::Custom("uuid".into())));
            let of_job = ObjectBuilder::new().property("jobId", uuid).required("jobId");
            let of_job = of_job.property("data", data.clone()).required("data");
            let of_job = if has_id { of_job.property("cursor", text()).required("cursor") } else { of_job };
            match name {
                // The whole connection's has no job.
                Some("goodbye") => OneOfBuilder::new().item(of_job).item(data).into(),
                _ => of_job.into(),
            }
        })
    }
}

impl ToSchema for ServerEvent {
    fn schemas(schemas: &mut Schemas) {
        events(schemas);
    }
}

impl ToSchema for BundledEvent {
    fn schemas(schemas: &mut Schemas) {
        events(schemas);
    }
}

impl PartialSchema for LogData<'_> {
    fn schema() -> RefOr<Schema> {
        let plain = text().description(Some("A line of the level info without a source"));
        let levels = text().enum_values(Some(["debug", "info", "warn", "error"]));
        let line = ObjectBuilder::new().property("text", text()).required("text");
        let line = line.property("level", levels).required("level");
        let line = line.property("source", text()).required("source");
        OneOfBuilder::new().item(plain).item(line).into()
    }
}

impl ToSchema for LogData<'_> {
    fn name() -> std::borrow::Cow<'static, str> {
        "LogEvent".into()
    }
}
