//! The client commands: one HTTP call each, and its answer printed for people or for programs.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    time::Duration,
};

use reqwest::{Method, redirect::Policy};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use crate::{
    api::Client,
    args::{Command, Follow, Health, JobOptions, JobRef, Jobs, Kinds, Submit, Target, Watch},
    config, doctor,
    exit::{self, Failure},
    schedules,
    text::{visible, visible_json},
    token,
    view::{self, payload},
    watch::{self, watch},
};

/// No valid request is larger; more is refused before it is read into memory.
const MAX_INPUT: u64 = 1024 * 1024;

/// The gateway that is meant, and what it is shown.
pub(crate) fn client(target: &Target) -> Result<Client, Failure> {
    let client = Client::trusting(&target.server, target.ca.as_deref())?;
    Ok(match (&target.token_file, &target.token) {
        (Some(path), _) => client.with_token_file(path)?,
        (None, Some(token)) => client.with_token(token)?,
        (None, None) => client,
    })
}

/// Runs a client command and returns its exit code.
///
/// # Errors
/// See [`Failure`].
pub async fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Submit(args) => submit(&args).await,
        Command::Watch(Watch { job_id, cursor, follow, target }) => {
            watch(&client(&target)?, &job_id, &options(cursor, &follow)).await
        }
        Command::Cancel(args) => {
            let body = args.reason.map_or(json!({}), |reason| json!({ "reason": reason }));
            steer(&args.job, "cancel", &body).await
        }
        Command::Retry(job) => steer(&job, "retry", &json!({})).await,
        Command::Delete(job) => {
            let client = client(&job.target)?;
            client.call(client.request(Method::DELETE, &["api", "jobs", &job.job_id])).await?;
            Ok(0)
        }
        Command::Jobs(args) => jobs(args).await,
        Command::Kinds(args) => kinds(args).await,
        Command::Schedule(command) => schedules::run(command).await,
        Command::Token(command) => token::run(&command),
        Command::Config(command) => config::run(&command, std::env::args_os()),
        Command::Doctor(mut args) => {
            if let Some(url) = args.url.take() {
                args.target.server = url;
            }
            doctor::run(&args, &client(&args.target)?).await
        }
        Command::Health(Health { url, timeout }) => health(&url, Duration::from_secs(timeout)).await,
    }
}

fn options(cursor: Option<String>, follow: &Follow) -> watch::Options {
    let give_up_after = Duration::from_secs(follow.give_up);
    watch::Options { cursor: cursor.unwrap_or_default(), json: follow.json, give_up_after }
}

/// The body of a submission. The input is passed on as it was written: numbers keep their digits.
#[derive(Serialize)]
struct Submission<'a> {
    kind: &'a str,
    input: &'a RawValue,
    options: &'a JobOptions,
}

async fn submit(args: &Submit) -> Result<u8, Failure> {
    let input = read_input(&args.input)?;
    let client = client(&args.target)?;
    let submission = Submission { kind: &args.kind, input: &input, options: &args.options };
    let mut request = client.request(Method::POST, &["api", "jobs"]).json(&submission);
    if let Some(key) = &args.key {
        request = request.header("idempotency-key", key);
    }
    let job = client.call(request).await?;
    let job_id = id(&client, &job)?;
    if args.watch {
        if !args.follow.json {
            eprintln!("job {job_id}");
        }
        return watch(&client, &job_id, &options(None, &args.follow)).await;
    }
    let mut out = io::stdout();
    if args.follow.json {
        writeln!(out, "{}", visible_json(&job))?;
    } else {
        writeln!(out, "{job_id}")?;
    }
    Ok(0)
}

/// The submitted job's id, which goes into the next request's path.
fn id(client: &Client, job: &Value) -> Result<String, Failure> {
    let id = job["jobId"].as_str().map(|id| visible(id).into_owned());
    Ok(id.ok_or_else(|| client.foreign("its job has no jobId".to_owned()))?)
}

/// The JSON that the argument gives: itself, the file behind `@`, or standard input for `-`.
pub(crate) fn read_input(arg: &str) -> Result<Box<RawValue>, Failure> {
    let read = |name: &str, from: &mut dyn io::Read| {
        let mut text = String::new();
        let read = from.take(MAX_INPUT + 1).read_to_string(&mut text);
        read.map_err(|e| Failure::Usage(format!("cannot read {name}: {e}")))?;
        if text.len() as u64 > MAX_INPUT {
            return Err(Failure::Usage(format!("{name} is larger than {MAX_INPUT} bytes")));
        }
        Ok(text)
    };
    let (name, text) = match (arg, arg.strip_prefix('@')) {
        ("-", _) => ("standard input".to_owned(), read("standard input", &mut io::stdin().lock())?),
        (_, Some(path)) => {
            let mut file =
                fs::File::open(path).map_err(|e| Failure::Usage(format!("cannot read {path}: {e}")))?;
            (path.to_owned(), read(path, &mut file)?)
        }
        (text, None) => ("the input".to_owned(), text.to_owned()),
    };
    serde_json::from_str(&text).map_err(|e| Failure::Usage(format!("{name} is not JSON: {e}")))
}

/// Asks without a client of the API: an admin port has no API.
async fn health(url: &str, within: Duration) -> Result<u8, Failure> {
    let url = reqwest::Url::parse(url).map_err(|e| Failure::Usage(format!("{url} is no URL: {e}")))?;
    // No proxy stands between a process and its own admin port.
    let client = reqwest::Client::builder().no_proxy().redirect(Policy::none()).timeout(within);
    // Asked every few seconds: nothing is read that is not needed.
    let client = if url.scheme() == "http" { client.tls_certs_only([]) } else { client };
    let client = client.build();
    let answer = client.map_err(anyhow::Error::from)?.get(url).send().await;
    let why = match answer {
        Ok(answer) if answer.status().is_success() => return Ok(0),
        Ok(answer) => format!("{}: {}", answer.status(), answer.text().await.unwrap_or_default().trim()),
        Err(error) => format!("{:#}", anyhow::Error::from(error)),
    };
    eprintln!("tidegate: {}", visible(&why));
    Ok(exit::UNAVAILABLE)
}

async fn steer(job: &JobRef, verb: &str, body: &Value) -> Result<u8, Failure> {
    let client = client(&job.target)?;
    let request = client.request(Method::POST, &["api", "jobs", &job.job_id, verb]).json(body);
    let answer = client.call(request).await?;
    writeln!(io::stdout(), "{}", summary(&answer))?;
    Ok(0)
}

/// `0190… PROCESSING`, and what was asked for meanwhile.
fn summary(job: &Value) -> String {
    let cancelling = job["cancelRequested"].is_object() && job["status"] == "PROCESSING";
    let note = if cancelling { " (cancellation requested)" } else { "" };
    format!("{} {}{note}", payload(&job["jobId"]), payload(&job["status"]))
}

async fn jobs(args: Jobs) -> Result<u8, Failure> {
    let client = client(&args.target)?;
    let status = args.status.iter().map(|s| s.to_ascii_uppercase()).collect::<Vec<_>>().join(",");
    let kind = args.kind.unwrap_or_default();
    if !args.json {
        writeln!(
            io::stdout(),
            "{:36}  {:10}  {:>5}  {:24}  {:16}  MESSAGE",
            "JOB",
            "STATUS",
            "DONE",
            "CREATED",
            "KIND"
        )?;
    }
    let filters = [("status", &*status), ("kind", &kind)];
    list(&client, "jobs", &filters, args.limit, |job| if args.json { visible_json(job) } else { row(job) })
        .await
}

/// Prints what a list of the API has, `most` of it, an item a line.
pub(crate) async fn list(
    client: &Client,
    name: &str,
    filters: &[(&str, &str)],
    most: usize,
    line: impl Fn(&Value) -> String,
) -> Result<u8, Failure> {
    let (mut out, mut left, mut page) = (io::stdout(), most, String::new());
    while left > 0 {
        let limit = left.min(200).to_string();
        let query = [&[("limit", &*limit), ("cursor", &page)], filters].concat();
        let answer = client.call(client.query(Method::GET, &["api", name], &query)).await?;
        for item in answer[name].as_array().map(Vec::as_slice).unwrap_or_default().iter().take(left) {
            left -= 1;
            writeln!(out, "{}", line(item))?;
        }
        match answer["next"].as_str() {
            Some(next) if !next.is_empty() && next != page => page = next.to_owned(),
            _ => break,
        }
    }
    Ok(0)
}

fn row(job: &Value) -> String {
    let text = |key: &str| payload(&job[key]);
    let percent = match job["progress"]["percent"].as_f64() {
        Some(percent) => format!("{percent:.0} %"),
        None => String::new(),
    };
    let message = match job["error"]["message"].as_str() {
        Some(error) => visible(error).into_owned(),
        None => view::bar(&job["progress"]).text,
    };
    let columns = (text("jobId"), text("status"), text("createdAt"), text("kind"));
    let line = format!(
        "{:36}  {:10}  {percent:>5}  {:24}  {:16}  {message}",
        columns.0, columns.1, columns.2, columns.3
    );
    line.trim_end().to_owned()
}

async fn kinds(args: Kinds) -> Result<u8, Failure> {
    let client = client(&args.target)?;
    let answer = client.call(client.request(Method::GET, &["api", "kinds"])).await?;
    let mut out = io::stdout();
    if args.json {
        writeln!(out, "{}", visible_json(&answer["kinds"]))?;
        return Ok(0);
    }
    for kind in answer["kinds"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let live = if kind["live"] == true { "" } else { " (no worker offers it now)" };
        writeln!(out, "{}{live}\n    {}", payload(&kind["kind"]), payload(&kind["description"]))?;
        if !kind["example"].is_null() {
            writeln!(out, "    tidegate submit {} '{}'", payload(&kind["kind"]), payload(&kind["example"]))?;
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_read_from_argument_and_file_and_checked_before_it_is_sent() {
        assert_eq!(read_input(r#"{"a": 1.50}"#).unwrap().get(), r#"{"a": 1.50}"#);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("in.json");
        fs::write(&file, " [1] ").unwrap();
        assert_eq!(read_input(&format!("@{}", file.display())).unwrap().get(), "[1]");
        for bad in ["", "{", "{}{}", "@/does/not/exist", "nul"] {
            assert!(matches!(read_input(bad), Err(Failure::Usage(_))), "{bad:?}");
        }
    }
}
