//! What every route sees: the engine, the texts' side of the model, and the server's settings.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use phalanx_engine::{Router, Sampling};
use phalanx_text::{ChatTemplate, Tokenizer};
use tokio::sync::Semaphore;

use crate::auth::ApiKeys;
use crate::error::ApiError;
use crate::families::Families;

/// Everything a server is made of.
pub struct ServerState {
    /// Where requests go: one engine, or several replicas of it.
    pub engine: Router,
    /// The model's vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's chat template; without one, chat routes answer 400 and say why.
    pub template: Option<Arc<ChatTemplate>>,
    /// What the model is called and how it likes to be sampled.
    pub model: ModelCard,
    /// The server's own settings.
    pub options: ServerOptions,
    /// Figures that `/metrics` shows beside its own.
    pub families: Vec<Families>,
}

/// The served model as clients see it.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// Its name in every answer.
    pub id: String,
    /// Other names that requests may use.
    pub aliases: Vec<String>,
    /// Tokens of prompt and answer together.
    pub max_model_len: usize,
    /// When the server was started, in seconds since 1970.
    pub created: u64,
    /// What a request gets that leaves a sampling field out: the model's own `generation_config`, or OpenAI's defaults.
    pub sampling: Sampling,
}

/// The server's settings; none is read from the environment.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// With keys, every route but `/health*`, `/ping` and the page's own files wants one of them.
    pub api_keys: Vec<String>,
    /// Which web pages may read answers.
    pub cors: Cors,
    /// Larger bodies are answered 413.
    pub body_limit_bytes: usize,
    /// A body that takes longer to arrive is answered 408.
    pub body_timeout: Duration,
    /// A connection whose next request has not begun, or whose head has not arrived, for this long is closed.
    pub idle_timeout: Duration,
    /// A client that takes nothing of its answer for this long is cut off, and its request aborted.
    pub write_timeout: Duration,
    /// A stream that is silent for this long carries a comment, so that proxies keep it open.
    pub ping_interval: Duration,
    /// Prompts one request may hold.
    pub max_prompts: usize,
    /// Answers one request may ask for, over all its prompts.
    pub max_answers: usize,
    /// Clients may send a `priority`; whoever may can overtake everyone else.
    pub client_priorities: bool,
    /// A step that takes longer than this counts as hanging, and the server as unhealthy.
    pub hang_after: Duration,
    /// How long running requests may go on after the server was told to stop.
    pub drain_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            cors: Cors::Local,
            body_limit_bytes: 32 << 20,
            body_timeout: Duration::from_secs(60),
            // Longer than the minute that clients and balancers keep idle connections, so that they close them, not we.
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            ping_interval: Duration::from_secs(10),
            max_prompts: 256,
            max_answers: 256,
            client_priorities: false,
            hang_after: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Which origins a browser lets read our answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cors {
    /// None but our own page.
    Off,
    /// Pages served from this machine (`localhost`, `127.0.0.1`, `[::1]`, any port).
    Local,
    /// Every page there is.
    Any,
    /// These, as `https://chat.example.org`.
    Only(Vec<String>),
}

/// The state behind the routes, shared by all connections.
pub(crate) struct Inner {
    pub(crate) engine: Router,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Option<Arc<ChatTemplate>>,
    pub(crate) model: ModelCard,
    pub(crate) options: ServerOptions,
    pub(crate) families: Vec<Families>,
    pub(crate) keys: ApiKeys,
    /// Texts tokenized at the same time: more than there are cores would only keep each other waiting.
    pub(crate) tokenizing: Arc<Semaphore>,
    /// Bytes of the vocabulary's longest token.
    pub(crate) longest_token: usize,
    pub(crate) started: Instant,
    /// Answered requests by route, method and status.
    pub(crate) answered: Mutex<BTreeMap<Answered, u64>>,
    draining: AtomicBool,
}

/// What answered requests are counted by. All three have few values, whatever clients send.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Answered {
    /// As declared, with its placeholders; `unmatched` for paths that are none of ours.
    pub(crate) route: String,
    pub(crate) method: &'static str,
    pub(crate) status: u16,
}

/// A cheap copy of the state, as axum hands it to each request.
pub(crate) type Shared = Arc<Inner>;

impl Inner {
    pub(crate) fn new(state: ServerState) -> Shared {
        let keys = ApiKeys::new(&state.options.api_keys);
        let cores = available_parallelism().map_or(1, NonZero::get);
        let ids = 0..u32::try_from(state.tokenizer.vocab_size()).expect("a token's id has 32 bits");
        let longest_token = ids.map(|id| state.tokenizer.token_bytes(id).len()).max().unwrap_or(0);
        Arc::new(Self {
            engine: state.engine,
            tokenizer: state.tokenizer,
            template: state.template,
            model: state.model,
            options: state.options,
            families: state.families,
            keys,
            tokenizing: Arc::new(Semaphore::new(cores)),
            longest_token,
            started: Instant::now(),
            answered: Mutex::new(BTreeMap::new()),
            draining: AtomicBool::new(false),
        })
    }

    /// From now on nothing new is taken and readiness is denied.
    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the server was told to stop.
    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Accepts a request's `model`: absent, the model's name, or an alias.
    ///
    /// # Errors
    /// 404 for another name.
    pub(crate) fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(name) if !self.serves(name) => Err(ApiError::model_not_found(name, &self.model.id)),
            _ => Ok(()),
        }
    }

    /// Whether this is a name of the model.
    pub(crate) fn serves(&self, name: &str) -> bool {
        self.model.id == name || self.model.aliases.iter().any(|alias| alias == name)
    }
}
