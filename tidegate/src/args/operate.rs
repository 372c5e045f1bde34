//! The commands of those who operate Tidegate: health, configuration, and what lies between a gateway and its browsers.

use clap::{Args, Subcommand};

use super::{Serve, Target};

/// Arguments of `health`.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
    0  it answered with a success
   69  it answered with anything else, or not within --timeout; standard error says what")]
pub struct Health {
    /// What to ask, such as http://127.0.0.1:9464/readyz
    pub url: String,
    /// How long the answer may take, in seconds
    #[arg(long, default_value_t = 3, value_name = "SECONDS")]
    pub timeout: u64,
}

/// Subcommands of `config`; their flags are those of serving.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Tell everything that is wrong, all at once; the exit code is 64 if anything is
    Check(Box<Serve>),
    /// Show every setting and where it is from; passwords are left out
    Print(Box<Serve>),
}

/// Arguments of `doctor`.
#[derive(Args, Debug)]
#[command(after_help = "\
It follows a job that is due in an hour, as a browser would, for half a minute; then it cancels and deletes the job. Run it
where the browsers are: it sees what lies between itself and the gateway. Every fault comes with what to change.

Examples:
  tidegate doctor https://tidegate.example --token-file token
  tidegate doctor https://localhost:8443 --ca ca.pem  # with your own authority
  tidegate doctor --origin https://app.example        # may that page follow jobs?
  tidegate doctor --redis redis://127.0.0.1:6379      # does the log's Redis evict?

Exit codes:
    0  streams pass, perhaps with warnings
    1  at least one FAULT
   65  the gateway refused to be asked, such as without a token
   69  the gateway cannot be reached")]
pub struct Doctor {
    /// The address that browsers use [default: that of --server]
    pub url: Option<String>,
    /// Ask whether pages of this origin may follow jobs
    #[arg(long, value_name = "ORIGIN")]
    pub origin: Option<String>,
    /// Ask this Redis, too, whether it may lose jobs
    #[arg(long, value_name = "URL", env = "TIDEGATE_REDIS", hide_env_values = true)]
    pub redis: Option<String>,
    /// The kind of the job that is followed and never run [default: the first that a worker offers]
    #[arg(long)]
    pub kind: Option<String>,
    /// Print JSON, one object a line, instead of text for people
    #[arg(long)]
    pub json: bool,
    /// Which gateway.
    #[command(flatten)]
    pub target: Target,
}
