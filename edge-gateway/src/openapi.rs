//! The API document, `/openapi.json`, and the page that shows it, `/docs`.
//!
//! Operations, parameters and types come from the code: a route is served with its annotation or not at all, and types
//! are described by what writes and reads them. A copy for the generators of clients is docs/openapi.json; a test
//! compares it.

use std::{collections::BTreeMap, sync::OnceLock};

use axum::Router;
use serde_json::{Map, Value, json};
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder, Schema},
};

use crate::{console, problem, sse};

/// The schemas of the document, by name.
pub(crate) type Schemas = Vec<(String, RefOr<Schema>)>;

/// What an operation may be refused with.
pub(crate) struct Problems;

/// What an operation on one job may be refused with.
pub(crate) struct ProblemsOfJob;

fn refusal(description: &str) -> RefOr<Response> {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(description).content("application/problem+json", content).into()
}

impl IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let client =
            "Refused; with `WWW-Authenticate` under 401 and 403, `RateLimit` and `Retry-After` under 429";
        let server = "Cannot be answered now, with `Retry-After`; or a fault of Tidegate";
        [("4XX", client), ("5XX", server)].map(|(status, text)| (status.to_owned(), refusal(text))).into()
    }
}

impl IntoResponses for ProblemsOfJob {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let mut responses = Problems::responses();
        responses.insert("404".into(), refusal("There is no such job, or it is not the caller's"));
        responses.insert("409".into(), refusal("The job's state forbids it"));
        responses
    }
}

/// The routes of the document and its page.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>(api: OpenApi) -> Router<S> {
    /// The document is the same for every gateway of a process.
    static TEXT: OnceLock<Vec<u8>> = OnceLock::new();
    let text = TEXT.get_or_init(|| serde_json::to_vec(&document(api)).unwrap_or_default());
    Router::new().route("/openapi.json", console::file("application/json", text))
}

/// The whole document: what the routes say of themselves, and what is true of all.
fn document(api: OpenApi) -> Value {
    // What no body or parameter names by its type.
    let mut schemas = Vec::new();
    describe::<problem::Document<'_>>(&mut schemas);
    describe::<sse::ServerEvent>(&mut schemas);
    describe::<sse::BundledEvent>(&mut schemas);
    let mut document = serde_json::to_value(api).unwrap_or_default();
    document["openapi"] = json!("3.2.0");
    document["info"] = json!({
        "title": "Tidegate",
        "version": env!("CARGO_PKG_VERSION"),
        "summary": "Long jobs, and their progress as it happens.",
        "description": include_str!("../assets/openapi.md"),
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    });
    document["tags"] = json!([
        {"name": "jobs", "description": "Submit, look, steer."},
        {"name": "schedules", "description": "Jobs that are submitted again and again."},
        {"name": "streams", "description": "The events of jobs, live and resumable, and who follows them."},
        {"name": "access", "description": "Sessions for pages of this gateway, tickets for `EventSource`."},
    ]);
    // Any one of these; or none, where nobody has to say who it is.
    document["security"] = json!([{"bearer": []}, {"apiKey": []}, {"session": []}, {}]);
    document["components"]["securitySchemes"] = json!({
        "bearer": {"type": "http", "scheme": "bearer", "description": "A JWT of a trusted issuer, or an API key."},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
        "session": {
            "type": "apiKey", "in": "cookie", "name": "__Host-tidegate",
            "description": "Of `POST /api/session`; called `tidegate` where the gateway is reached without TLS.",
        },
    });
    for (name, schema) in schemas {
        document["components"]["schemas"][name] = json!(schema);
    }
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.values_mut().for_each(absent_is_not_null);
    }
    document
}

/// Adds the schema of a type, and those that it refers to.
pub(crate) fn describe<T: ToSchema>(schemas: &mut Schemas) {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
}

/// What may be left out is described as nullable, too; but it is left out, never null.
fn absent_is_not_null(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    for parts in ["allOf", "oneOf", "anyOf"] {
        schema
            .get_mut(parts)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .for_each(absent_is_not_null);
    }
    let required = schema.get("required").cloned().unwrap_or_default();
    let required = |name: &str| required.as_array().is_some_and(|all| all.iter().any(|one| one == name));
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    for (_, property) in properties.into_iter().flatten().filter(|(name, _)| !required(name)) {
        if let Some(property) = property.as_object_mut() {
            without_null(property);
        }
    }
}

fn without_null(property: &mut Map<String, Value>) {
    if let Some(types) = property.get("type").and_then(Value::as_array) {
        let types: Vec<_> = types.iter().filter(|one| *one != "null").cloned().collect();
        property.insert("type".into(), if let [one] = &types[..] { one.clone() } else { json!(types) });
    }
    let other = property.get("oneOf").and_then(Value::as_array).and_then(|either| match &either[..] {
        [other, null] | [null, other] if null["type"] == "null" => other.as_object().cloned(),
        _ => None,
    });
    if let Some(other) = other {
        property.remove("oneOf");
        property.extend(other);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn current() -> Value {
        document(crate::routes::api().split_for_parts().1)
    }

    /// Every `$ref` in the document.
    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_copy_in_docs_is_what_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let text = serde_json::to_string_pretty(&current()).unwrap() + "\n";
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let copy = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            copy == text,
            "docs/openapi.json is not up to date: UPDATE_DOCS=1 cargo test -p edge-gateway --lib openapi"
        );
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_says_what_it_is() {
        let document = current();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 15, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let mut ids = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let what = format!("{method} {path}: {operation}");
                assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{what}");
                assert!(operation["summary"].as_str().is_some_and(|text| text.len() < 60), "{what}");
                assert!(operation["responses"]["4XX"].is_object(), "{what}");
                let parameters = operation["parameters"].as_array().map_or(0, Vec::len);
                assert!(!path.contains('{') || parameters > 0, "{what}");
            }
        }
        assert_eq!(ids.len(), 19, "{ids:?}");
    }

    #[test]
    fn what_may_be_left_out_is_never_null_and_what_may_be_null_stays() {
        let document = current();
        let job = &document["components"]["schemas"]["Job"];
        assert_eq!(job["properties"]["startedAt"]["type"], "string", "{job}");
        assert_eq!(job["properties"]["checkpoint"]["$ref"], "#/components/schemas/Checkpoint", "{job}");
        let progress = &document["components"]["schemas"]["ProgressEvent"].to_string();
        assert!(progress.contains("null"), "an unknown percentage is null: {progress}");
    }
}
