//! The pages behind the types of problem documents: docs/problems, as HTML, at the addresses that the types name.
//!
//! A test holds them against every type that the gateway answers with.

use std::sync::LazyLock;

use axum::Router;
use pulldown_cmark::{Event, Parser, Tag, TagEnd, html};
use utoipa::openapi::{Object, ObjectBuilder, Type};

use crate::console;

macro_rules! pages {
    ($($slug:literal)+) => {
        &[$(($slug, include_str!(concat!("../../docs/problems/", $slug, ".md")))),+]
    };
}

/// Each problem's slug and page.
const PAGES: &[(&str, &str)] = pages! {
    "auth-unavailable" "body-too-large" "conflict" "cross-origin" "cursor-beside-ticket" "draining" "engine-unavailable"
    "foreign-host" "idempotency-conflict" "insufficient-scope" "internal" "invalid-argument" "job-not-found" "malformed-cursor"
    "malformed-job-id" "malformed-json" "method-not-allowed" "not-acceptable" "not-found" "quota-exceeded"
    "request-timeout" "schedule-not-found" "temporary-reduced-capacity" "unauthenticated" "unique-conflict" "unknown-kind"
};

/// The types of all problems, which their pages say: registered ones where there are such, ours otherwise.
pub(crate) fn types() -> Object {
    let types =
        PAGES.iter().map(|(slug, page)| match page.split('`').find(|text| text.starts_with("https://")) {
            Some(registered) => registered.to_owned(),
            None => address(slug),
        });
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(types)).build()
}

/// The names of all problems.
pub(crate) fn slugs() -> impl Iterator<Item = &'static str> {
    PAGES.iter().map(|(slug, _)| *slug)
}

fn address(slug: &str) -> String {
    format!("/problems/{slug}")
}

/// One route a page, and one for their list.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    static RENDERED: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
        let index: String = PAGES.iter().map(|(slug, _)| format!("- [{slug}]({slug}.md)\n")).collect();
        let index = format!(
            "# Problems\n\nWhat can go wrong, by the last part of a problem document's `type`.\n\n{index}"
        );
        let list = ("/problems/".to_owned(), render("Problems", &index));
        let page = |(slug, page): &(&str, &str)| (address(slug), render(slug, page));
        std::iter::once(list).chain(PAGES.iter().map(page)).collect()
    });
    RENDERED.iter().fold(Router::new(), |router, (path, page)| {
        router.route(path, console::file(console::HTML, page.as_bytes()))
    })
}

/// The page as HTML. Pages link to each other by their files' names; what is outside their directory is not served.
fn render(title: &str, page: &str) -> String {
    let mut inside = true;
    let events = Parser::new(page).filter_map(|event| match event {
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            inside = !dest_url.starts_with("../") || dest_url.ends_with(".json");
            let dest_url = dest_url.trim_end_matches(".md").to_owned().into();
            inside.then_some(Event::Start(Tag::Link { link_type, dest_url, title, id }))
        }
        Event::End(TagEnd::Link) => inside.then_some(Event::End(TagEnd::Link)),
        other => Some(other),
    });
    let mut body = String::new();
    html::push_html(&mut body, events);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title} · Tidegate</title>\n\
         <link rel=\"icon\" href=\"/favicon.svg\" type=\"image/svg+xml\">\n<link rel=\"stylesheet\" href=\"/style.css\">\n\
         <link rel=\"stylesheet\" href=\"/docs.css\">\n<body class=\"document\">\n<main>\n{body}</main>\n\
         <footer><a href=\"/problems/\">All problems</a> · <a href=\"/docs\">The API</a></footer>\n"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_type_of_problem_has_its_page_and_every_page_its_type() {
        // The arms of `Problem::kind`, which is the only place that makes slugs.
        let source = include_str!("problem.rs");
        let kind = source.split("fn kind(").nth(1).unwrap().split("\n    }\n").next().unwrap();
        let used: BTreeSet<_> =
            kind.split("(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert!(used.len() > 20, "{used:?}");
        assert_eq!(used, PAGES.iter().map(|(slug, _)| *slug).collect::<BTreeSet<_>>());
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/problems")).unwrap();
        let files: BTreeSet<_> = files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(files, PAGES.iter().map(|(slug, _)| format!("{slug}.md")).collect::<BTreeSet<_>>());
    }

    #[test]
    fn a_page_says_its_name_its_status_and_shows_an_example_that_is_json() {
        for (slug, page) in PAGES {
            assert!(page.starts_with(&format!("# {slug}\n")), "{slug}");
            let status: u16 = page.split("tatus ").nth(1).unwrap().get(..3).unwrap().parse().unwrap();
            let example = page.split("```json").nth(1).unwrap().split("```").next().unwrap();
            let example: serde_json::Value = serde_json::from_str(example).unwrap();
            assert_eq!(example["status"], status, "{slug}");
            assert!(example["type"].as_str().unwrap().ends_with(slug), "{slug}");
        }
    }

    #[test]
    fn links_lead_to_pages_that_are_served() {
        let page = render("x", "[a](engine-unavailable.md) [b](../auth.md#scopes) [c](../openapi.json)");
        assert!(
            page.contains(r#"<a href="engine-unavailable">a</a> b <a href="../openapi.json">c</a>"#),
            "{page}"
        );
    }
}
