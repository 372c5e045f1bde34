//! The one place that says whether a credential is good, and that follows the files and key sets behind the answer.
//!
//! Everything that decides is one immutable [`State`], replaced as a whole. Its version is raised with every change, and
//! whoever holds something open (a stream) asks again then. A file that turned bad, or a key set that cannot be fetched,
//! leaves the last good state in force; an `[auth]` section that disappears shuts everybody out rather than in.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    time::{Instant, sleep},
};

use crate::{
    API_KEY_PREFIX, Credential, MAX_TOKEN_BYTES, Principal, Refused, Scope, Sealer, SecretError,
    SessionSettings, TicketSettings,
    cache::{Cache, Verified},
    file::{self, ApiKey, ConfigErrors, Settings},
    issuer::{KeySource, Unverified},
    jwks::{self, Fetched},
    mint, now, sha256,
    state::State,
};

/// Between two fetches of one key set, whoever asks for them.
const FETCH_EVERY: Duration = Duration::from_secs(10);

/// Says who presents a credential; a cheap handle.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    path: PathBuf,
    state: ArcSwap<State>,
    version: watch::Sender<u64>,
    cache: Mutex<Cache>,
    /// When each key set was asked for last, by its URL; held while that one is fetched, so that it is fetched once.
    fetches: Mutex<HashMap<String, Arc<AsyncMutex<Option<Instant>>>>>,
    http: reqwest::Client,
    /// Held while a state is made from the one before it.
    changing: Mutex<()>,
    /// The hash of the key that this process made for its own parts.
    process: Mutex<Option<[u8; 32]>>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authenticator")
    }
}

impl Authenticator {
    /// By the configuration file at `path`; none if that has no `[auth]` section.
    ///
    /// # Errors
    /// Everything that is wrong with the section, and a section that would let nobody in.
    pub fn from_file(path: &Path) -> Result<Option<Self>, ConfigErrors> {
        let here = |error: String| ConfigErrors(vec![format!("{}: {error}", path.display())]);
        let Some(settings) = file::load(path)? else { return Ok(None) };
        if settings.issuers.is_empty() && settings.api_keys.is_empty() {
            return Err(here("[auth] has neither an issuer nor an api_key: nobody could come in".into()));
        }
        for issuer in &settings.issuers {
            if let KeySource::Url(url) = &issuer.keys
                && url.starts_with("http://")
            {
                tracing::warn!(
                    issuer = issuer.issuer,
                    "its keys are fetched without TLS: whoever is in between can make tokens"
                );
            }
        }
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(3));
        let http = http.build().map_err(|error| here(error.to_string()))?;
        let state = State::new(1, settings, &Fetched::new());
        Ok(Some(Self(Arc::new(Inner {
            path: path.to_owned(),
            state: ArcSwap::from_pointee(state),
            version: watch::Sender::new(1),
            cache: Mutex::default(),
            fetches: Mutex::default(),
            http,
            changing: Mutex::default(),
            process: Mutex::default(),
        }))))
    }

    /// Who presents `token`, a JWT or an API key.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn bearer(&self, token: &str) -> Result<Arc<Principal>, Refused> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refused::TooLong);
        }
        let (hash, now) = (sha256(token.as_bytes()), now());
        if token.starts_with(API_KEY_PREFIX) {
            return self.api_key(&hash, now);
        }
        let state = self.0.state.load();
        if let Some(known) = self.0.cache.lock().get(&hash, state.version, now) {
            return Ok(known);
        }
        let unverified = Unverified::read(token)?;
        let mut verified = state.verify(token, &unverified);
        let mut version = state.version;
        if let (Err(Refused::UnknownKey | Refused::Unavailable), Some(url)) =
            (&verified, state.url_of(&unverified))
        {
            // Perhaps the key is new.
            self.fetch(url, FETCH_EVERY).await;
            let state = self.0.state.load();
            verified = state.verify(token, &unverified);
            version = state.version;
        }
        let (principal, leeway) = verified?;
        let until = principal.expires.unwrap_or(now).saturating_add(leeway);
        let principal = Arc::new(principal);
        self.0.cache.lock().put(hash, Verified { principal: Arc::clone(&principal), version, until });
        Ok(principal)
    }

    fn api_key(&self, hash: &[u8; 32], now: u64) -> Result<Arc<Principal>, Refused> {
        let equal = |known: &[u8; 32]| verify_slices_are_equal(known, hash).is_ok();
        if self.0.process.lock().as_ref().is_some_and(equal) {
            return Ok(Arc::new(Principal {
                tenant: "default".into(),
                subject: "process".into(),
                scopes: [Scope::Delegate, Scope::Work].into_iter().collect(),
                expires: None,
                credential: Credential::Process,
            }));
        }
        let state = self.0.state.load();
        // All of them, so that the time says nothing of which.
        let key = state
            .settings
            .api_keys
            .iter()
            .fold(None, |found, key| if equal(&key.sha256) { Some(key) } else { found });
        let principal =
            key.filter(|key| key.is_live(now)).map(ApiKey::principal).ok_or(Refused::UnknownApiKey)?;
        state.standing(&principal, now)?;
        Ok(Arc::new(principal))
    }

    /// Whether what was once granted to `principal` is granted still.
    ///
    /// # Errors
    /// [`Refused::Expired`], [`Refused::Revoked`], or [`Refused::Unavailable`] where it cannot be said.
    pub fn standing(&self, principal: &Principal) -> Result<(), Refused> {
        self.0.state.load().standing(principal, now())
    }

    /// Follows the version of everything that decides.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// A new key for the parts of this process: it may call the engine on behalf of anybody, and take jobs.
    pub fn process_key(&self) -> String {
        let (key, hash) = mint::api_key();
        *self.0.process.lock() = Some(hash);
        key
    }

    /// How session cookies are made.
    pub fn session(&self) -> SessionSettings {
        self.0.state.load().settings.session
    }

    /// How tickets are made.
    pub fn tickets(&self) -> TicketSettings {
        self.0.state.load().settings.tickets
    }

    /// What seals tickets and sessions: the configured secret, else the one at `fallback`, else one for this process only.
    ///
    /// # Errors
    /// When a secret cannot be read or made.
    pub fn sealer(&self, fallback: Option<&Path>) -> Result<Sealer, SecretError> {
        let state = self.0.state.load();
        match state.settings.secret_file.as_deref().or(fallback) {
            Some(path) => Sealer::from_file(path),
            None => Sealer::ephemeral(),
        }
    }

    /// Follows the files and key sets, for ever. A change takes effect within `auth.reload_seconds`, in a key set behind
    /// a URL within the issuer's `refresh_seconds` more.
    pub async fn follow(self) {
        // Apart, so that a key server that does not answer holds up no revocation.
        tokio::join!(self.follow_files(), self.follow_key_sets());
    }

    async fn follow_key_sets(&self) {
        loop {
            let state = self.0.state.load_full();
            let due = state.issuers.iter().filter_map(|issuer| match &issuer.settings.keys {
                KeySource::Url(url) => {
                    let every = if issuer.keys.is_some() { issuer.settings.refresh } else { FETCH_EVERY };
                    Some(self.fetch(url, every))
                }
                _ => None,
            });
            join_all(due).await;
            sleep(state.settings.reload).await;
        }
    }

    async fn follow_files(&self) {
        let mut complaint = None;
        loop {
            let reload = self.0.state.load().settings.reload;
            sleep(reload).await;
            let path = self.0.path.clone();
            let loaded = tokio::task::spawn_blocking(move || file::load(&path)).await;
            match loaded.unwrap_or_else(|_| Err(ConfigErrors(vec!["reading it failed".into()]))) {
                Ok(settings) => {
                    complaint = None;
                    self.replace(settings.unwrap_or_else(Settings::nobody));
                }
                Err(errors) => {
                    if complaint.as_ref() != Some(&errors) {
                        tracing::error!(%errors, "the configuration file has errors; what was good before stays in force");
                    }
                    complaint = Some(errors);
                }
            }
        }
    }

    /// Makes the next state of the current one, unless there is nothing new.
    fn change(&self, next: impl FnOnce(&State) -> Option<State>) -> bool {
        let _alone = self.0.changing.lock();
        let Some(state) = next(&self.0.state.load()) else { return false };
        let version = state.version;
        self.0.state.store(Arc::new(state));
        self.0.version.send_replace(version);
        true
    }

    /// Takes over what a file says.
    fn replace(&self, settings: Settings) {
        let changed = self.change(|current| {
            let new = settings.digest != current.settings.digest;
            new.then(|| State::new(current.version + 1, settings, &current.fetched()))
        });
        if changed {
            tracing::info!("the credentials of the configuration file have changed");
        }
    }

    /// Fetches a key set unless that was tried within `every`; keeps what there was if it fails.
    async fn fetch(&self, url: &str, every: Duration) {
        let last = Arc::clone(self.0.fetches.lock().entry(url.to_owned()).or_default());
        let mut last = last.lock().await;
        if last.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        *last = Some(Instant::now());
        let place = jwks::place(url);
        match jwks::fetch(&self.0.http, url).await {
            Ok(keys) => {
                let count = keys.len();
                let changed = self.change(|current| {
                    let mut fetched = current.fetched();
                    let new = fetched.get(url).is_none_or(|known| !jwks::same(known, &keys));
                    fetched.insert(url.to_owned(), keys);
                    new.then(|| State::new(current.version + 1, current.settings.clone(), &fetched))
                });
                if changed {
                    tracing::info!(place, keys = count, "the key set has changed");
                }
            }
            Err(error) => {
                tracing::warn!(place, %error, "the key set cannot be used; the last good one stays in force");
            }
        }
    }
}
