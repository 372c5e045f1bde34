//! Where logs and traces go: flags, and the subscriber that they make.
//!
//! Logs go to standard error, one line a fact, as text or as JSON. Traces go to a collector by OTLP, if one is named. A
//! collector that is away costs nothing but its spans: they wait in a bounded queue, and are dropped when it is full.

use std::{
    fmt,
    io::{IsTerminal as _, stderr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, ValueEnum};
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tonic::transport::{Certificate, ClientTlsConfig};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, filter_fn},
    layer::SubscriberExt as _,
    reload,
    util::SubscriberInitExt as _,
};

use crate::{loglevel, trace};

/// How long the last spans may take to leave when the process ends.
const FLUSH: Duration = Duration::from_secs(3);

/// Flags of every binary that serves.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Logs and traces")]
pub struct Output {
    /// What is logged: a level, or several by part, such as `info,edge_gateway=debug`; PUT /loglevel on the admin port changes it
    #[arg(long = "log", env = "TIDEGATE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// How it is written to standard error, one line a fact
    #[arg(long, env = "TIDEGATE_LOG_FORMAT", value_enum, default_value = "text", value_name = "FORMAT")]
    pub log_format: Format,
    /// Export traces by OTLP (gRPC) to the collector at this http:// or https:// address; none are made without it
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// A file of certificates (PEM) by which to trust the collector, instead of the system's
    #[arg(long, env = "OTEL_EXPORTER_OTLP_CERTIFICATE", value_name = "FILE")]
    pub otlp_ca: Option<PathBuf>,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For machines: a JSON object
    Json,
}

/// Why nothing can be logged or exported as asked.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The filter cannot be read.
    #[error("--log: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The collector's address is none, or it cannot be trusted.
    #[error("--otlp-endpoint: {0}")]
    Endpoint(String),
    /// The file of certificates cannot be read.
    #[error("--otlp-ca {0}: {1}")]
    Ca(PathBuf, std::io::Error),
    /// Somebody in this process logs already.
    #[error("logs are written already: {0}")]
    Taken(#[from] tracing_subscriber::util::TryInitError),
}

/// Keeps the export alive; the last spans leave when it is dropped.
#[must_use]
pub struct Guard(Option<SdkTracerProvider>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.0 {
            // A collector that is away must not keep the process.
            let _ = provider.shutdown_with_timeout(FLUSH);
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

impl Output {
    /// Begins to log and to export, for the whole process, as `service`; `level` is what is logged unless told otherwise. Must
    /// be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`OutputError`]; each is a mistake in the configuration.
    pub fn start(&self, service: &'static str, level: &str) -> Result<Guard, OutputError> {
        let (logs, handle) = self.logs(level)?;
        let provider = self.otlp_endpoint.as_deref().filter(|url| !url.is_empty());
        let provider = provider.map(|url| self.provider_to(url, service)).transpose()?;
        match &provider {
            None => tracing_subscriber::registry().with(logs).try_init()?,
            Some(provider) => {
                let spans = tracing_opentelemetry::layer()
                    .with_tracer(provider.tracer("tidegate"))
                    .with_location(false)
                    .with_threads(false)
                    .with_tracked_inactivity(false)
                    .with_target(false)
                    .with_filter(filter_fn(|metadata| metadata.target() == trace::TARGET));
                tracing_subscriber::registry().with(logs).with(spans).try_init()?;
            }
        }
        loglevel::keep(handle);
        Ok(Guard(provider))
    }

    fn logs(&self, level: &str) -> Result<(Logs, reload::Handle<EnvFilter, Registry>), OutputError> {
        let filter = self.log.clone().or_else(|| std::env::var(EnvFilter::DEFAULT_ENV).ok());
        // What libraries say of themselves below a warning is for whoever asks for it.
        let quiet = format!("{level},fjall=warn,lsm_tree=warn,opentelemetry=warn");
        let filter = EnvFilter::try_new(filter.filter(|text| !text.is_empty()).unwrap_or(quiet))?;
        let (filter, handle) = reload::Layer::new(filter);
        let lines = tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal());
        let lines: Logs = match self.log_format {
            Format::Text => lines.boxed(),
            Format::Json => lines.json().flatten_event(true).boxed(),
        };
        // Spans are for traces: without an export they are disabled where they stand.
        let facts = filter_fn(|metadata| metadata.target() != trace::TARGET);
        Ok((lines.with_filter(facts.and(filter)).boxed(), handle))
    }

    fn provider_to(&self, url: &str, service: &'static str) -> Result<SdkTracerProvider, OutputError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(url);
        let exporter = match url.split_once("://") {
            Some(("http", _)) => exporter,
            Some(("https", _)) => exporter.with_tls_config(self.tls()?),
            _ => {
                return Err(OutputError::Endpoint(format!(
                    "{url:?} does not begin with http:// or https://"
                )));
            }
        };
        let exporter = exporter.build().map_err(|error| OutputError::Endpoint(error.to_string()))?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(service);
        }
        let resource =
            resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
        // How many are sampled, how large a batch is: OTEL_TRACES_SAMPLER, OTEL_BSP_…, as everywhere.
        Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
    }

    /// By whom the collector is trusted.
    fn tls(&self) -> Result<ClientTlsConfig, OutputError> {
        let Some(path) = self.otlp_ca.as_ref().filter(|path| !path.as_os_str().is_empty()) else {
            return Ok(ClientTlsConfig::new().with_native_roots());
        };
        let pem = std::fs::read(path).map_err(|error| OutputError::Ca(path.clone(), error))?;
        Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))
    }
}

type Logs = Box<dyn Layer<Registry> + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_export_a_span_is_disabled_where_it_stands() {
        let output = Output { log: Some("trace".into()), ..Output::default() };
        let (logs, _handle) = output.logs("info").unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(logs), || {
            let span = tracing::error_span!(target: trace::TARGET, "submit");
            assert!(span.is_disabled());
            assert_eq!(trace::of(&span), "");
            assert!(!tracing::error_span!("another").is_disabled(), "the log's own are not");
        });
    }

    #[test]
    fn mistakes_are_told_with_their_flag() {
        let wrong = Output { log: Some("a=b=c".into()), ..Output::default() };
        assert!(wrong.logs("info").err().unwrap().to_string().starts_with("--log: "));
        let error = Output::default().provider_to("collector:4317", "test").err().unwrap().to_string();
        assert!(error.starts_with("--otlp-endpoint: "), "{error}");
        let nowhere = Output { otlp_ca: Some("/does/not/exist".into()), ..Output::default() };
        let error = nowhere.provider_to("https://collector:4317", "test").err().unwrap().to_string();
        assert!(error.starts_with("--otlp-ca "), "{error}");
    }
}
