//! The server over real HTTP, around a real engine whose model is a fake.

#![allow(clippy::unwrap_used, reason = "this is all test code, helpers included")]

mod client;
mod disconnect;
mod fake;
mod operations;
mod refusals;
mod routes;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phalanx_engine::{Engine, EngineHandle, EngineOptions, Router, Sampling, Snapshot};
use phalanx_scheduler::SchedulerConfig;
use phalanx_server::{ModelCard, Server, ServerOptions, ServerState};
use phalanx_text::ChatTemplate;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Prints a conversation as `user:hello;`, so that the fake model answers exactly that.
const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}:{{ message.content }};{% endfor %}";

const MODEL: &str = "org/fake-1b";
const ALIAS: &str = "fake";
const MAX_MODEL_LEN: usize = 1 << 20;
/// How long a test waits for something that takes a moment; only a failure takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A listening server.
struct Running {
    address: SocketAddr,
    /// The first replica.
    engine: EngineHandle,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<std::io::Result<()>>,
}

/// How a server differs from the one most tests want.
struct Setup {
    options: ServerOptions,
    max_sequences: usize,
    max_queue: usize,
    max_model_len: usize,
    replicas: usize,
    template: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            options: ServerOptions::default(),
            max_sequences: 16,
            max_queue: 64,
            max_model_len: MAX_MODEL_LEN,
            replicas: 1,
            template: true,
        }
    }
}

impl Running {
    async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    async fn with(setup: Setup) -> Self {
        let tokenizer = fake::tokenizer();
        let options = EngineOptions {
            name: "engine".to_owned(),
            scheduler: SchedulerConfig {
                num_blocks: 1 << 16,
                block_size: 16,
                max_batched_tokens: 2048,
                max_sequences: setup.max_sequences,
                max_model_len: setup.max_model_len,
                prefix_cache: true,
                overlap: false,
                stages: 1,
                hash_key: [7; 32],
            },
            vocab_size: fake::VOCAB,
            eos_token_ids: vec![fake::END],
            max_queue: setup.max_queue,
        };
        let start = || {
            Engine::start(options.clone(), Arc::clone(&tokenizer), Box::new(fake::Fake::default())).unwrap()
        };
        let engines: Vec<EngineHandle> = (0..setup.replicas).map(|_| start()).collect();
        let engine = engines[0].clone();
        let template = ChatTemplate::new(TEMPLATE, "", "").unwrap();
        let server = Server::new(ServerState {
            engine: Router::new(engines),
            tokenizer,
            template: setup.template.then(|| Arc::new(template)),
            model: ModelCard {
                id: MODEL.to_owned(),
                aliases: vec![ALIAS.to_owned()],
                max_model_len: setup.max_model_len,
                created: 1_700_000_000,
                sampling: Sampling::default(),
            },
            options: setup.options,
            families: vec![Box::new(fake::families)],
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move { drop(stopped.await) };
        let serving = tokio::spawn(server.serve(listener, shutdown));
        Self { address, engine, stop: Some(stop), serving }
    }

    /// Waits until the engine's figures are as wanted.
    async fn until(&self, wanted: impl Fn(&Snapshot) -> bool) {
        let arrive = async {
            while !wanted(&self.engine.metrics()) {
                tokio::task::yield_now().await;
            }
        };
        let figures = || self.engine.metrics();
        tokio::time::timeout(PATIENCE, arrive).await.unwrap_or_else(|_| panic!("never: {:?}", figures()));
    }
}
