//! `tidegate token`: keys and tokens for development, API keys for machines, and what to write into the configuration.
//!
//! What is secret goes to standard output alone, or into a file that only its owner can read; what explains it goes to
//! standard error. Nothing here talks to a server, and nothing is stored beyond the files that are named.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde_json::json;
use tidegate_auth::{Scope, mint, now};

use crate::exit::Failure;

/// The `iss` of development tokens.
const ISSUER: &str = "tidegate-dev";
/// Their `aud`.
const AUDIENCE: &str = "tidegate";
/// The private key of `init`.
const KEY_FILE: &str = "dev-key.json";
/// The key set of `init`.
const JWKS_FILE: &str = "dev-jwks.json";

/// Keys and tokens.
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a key pair for development tokens, and print the configuration that trusts it
    Init(Init),
    /// Sign a token for development
    #[command(after_help = MINT_EXAMPLES)]
    Mint(Mint),
    /// Make an API key for a machine, and print the configuration that knows it
    Key(Key),
}

const MINT_EXAMPLES: &str = "\
Examples:
  tidegate token init --dir ./dev >> tidegate.toml
  export TIDEGATE_TOKEN=$(tidegate token mint --key ./dev/dev-key.json --subject alice)
  tidegate token mint --secret-file hs.secret --issuer https://idp.example --scope jobs:admin --seconds 300
";

/// Arguments of `init`.
#[derive(Args, Debug)]
pub struct Init {
    /// Where the key pair is put; nothing there is overwritten
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub dir: PathBuf,
}

/// Whom a token or key is for.
#[derive(Args, Debug)]
pub struct Subject {
    /// Whose jobs it submits and sees
    #[arg(long, default_value = "dev", value_name = "NAME")]
    pub subject: String,
    /// The subject's tenant
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub tenant: String,
    /// What it may do; repeatable
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', value_parser = Scope::ALL.map(Scope::name),
          default_values = ["jobs:submit", "jobs:read", "jobs:control"])]
    pub scopes: Vec<String>,
}

/// Arguments of `mint`.
#[derive(Args, Debug)]
pub struct Mint {
    /// The private key that `tidegate token init` made
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "secret_file",
        conflicts_with = "secret_file"
    )]
    pub key: Option<PathBuf>,
    /// A shared secret instead, for HS256
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Whom it is for.
    #[command(flatten)]
    pub of: Subject,
    /// The issuer, as it is configured
    #[arg(long, default_value = ISSUER, value_name = "ISS")]
    pub issuer: String,
    /// The audience, as it is configured
    #[arg(long, default_value = AUDIENCE, value_name = "AUD")]
    pub audience: String,
    /// How long it lasts
    #[arg(long, default_value_t = 3600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub seconds: u64,
}

/// Arguments of `key`.
#[derive(Args, Debug)]
pub struct Key {
    /// What it is called in the configuration
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Whom it is for.
    #[command(flatten)]
    pub of: Subject,
}

/// Runs one of them.
///
/// # Errors
/// When a file cannot be read or written, or holds no key.
pub fn run(command: &Token) -> Result<u8, Failure> {
    match command {
        Token::Init(args) => init(&args.dir)?,
        Token::Mint(args) => mint_token(args)?,
        Token::Key(args) => api_key(args)?,
    }
    Ok(0)
}

fn init(dir: &Path) -> Result<(), Failure> {
    let (private, public) = mint::ed25519().map_err(anyhow::Error::from)?;
    let (key, jwks) = (dir.join(KEY_FILE), dir.join(JWKS_FILE));
    let made = fs::create_dir_all(dir)
        .and_then(|()| create(&key, &private.to_string(), 0o600))
        .and_then(|()| create(&jwks, &public.to_string(), 0o644));
    made.map_err(|error| Failure::Usage(format!("{}: {error}", dir.display())))?;
    let jwks = toml_text(&fs::canonicalize(&jwks)?.display().to_string());
    print(&format!(
        "# Development only: whoever has {KEY_FILE} can be anybody.\n\
         [[auth.issuer]]\n\
         issuer = \"{ISSUER}\"\n\
         audience = \"{AUDIENCE}\"\n\
         algorithms = [\"EdDSA\"]\n\
         jwks = {jwks}\n\
         tenant_claim = \"tenant\"\n\
         # What reaches beyond one tenant is had by a grant only.\n\
         grants = {{ \"engine:delegate\" = [\"engine:delegate\"], \"engine:work\" = [\"engine:work\"] }}\n"
    ))?;
    eprintln!(
        "\nThe section above belongs into the file that `tidegate --config FILE` reads. Then:\n  \
         export TIDEGATE_TOKEN=$(tidegate token mint --key {} --subject \"$USER\")",
        key.display()
    );
    Ok(())
}

fn mint_token(args: &Mint) -> Result<(), Failure> {
    let path = args.key.as_ref().or(args.secret_file.as_ref());
    let path = path.ok_or_else(|| Failure::Usage("name --key or --secret-file".into()))?;
    let bad = |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| bad(&error))?;
    let key = if args.key.is_some() {
        mint::SigningKey::from_jwk(&text)
    } else {
        mint::SigningKey::from_secret(&text)
    };
    let key = key.map_err(|error| bad(&error))?;
    let now = now();
    let claims = json!({
        "iss": args.issuer, "aud": args.audience, "sub": args.of.subject, "tenant": args.of.tenant,
        "scope": args.of.scopes.join(" "), "iat": now, "exp": now + args.seconds,
        "jti": uuid::Uuid::now_v7().to_string(),
    });
    print(&format!("{}\n", key.sign(&claims).map_err(anyhow::Error::from)?))?;
    Ok(())
}

fn api_key(args: &Key) -> Result<(), Failure> {
    let (key, hash) = mint::api_key();
    let scopes: Vec<_> = args.of.scopes.iter().map(|scope| toml_text(scope)).collect();
    eprintln!(
        "[[auth.api_key]]\nname = {}\nsha256 = \"{}\"\nsubject = {}\ntenant = {}\nscopes = [{}]\n",
        toml_text(&args.name),
        mint::sha256_hex(&hash),
        toml_text(&args.of.subject),
        toml_text(&args.of.tenant),
        scopes.join(", "),
    );
    eprintln!(
        "The section above belongs into the file that --config names. The key itself is shown this once:"
    );
    print(&format!("{key}\n"))?;
    Ok(())
}

/// A basic string of TOML, whose escapes are those of JSON.
fn toml_text(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}

/// Makes a file that does not exist yet.
fn create(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}
