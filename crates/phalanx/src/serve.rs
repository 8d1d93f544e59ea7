//! `phalanx serve`: a model, an engine, a door, and an orderly end.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use phalanx_model::layout::choose::Objective;
use phalanx_server::{Cors, ModelCard, Server, ServerOptions, ServerState};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;

use crate::args::ServeArgs;
use crate::files::{self, ModelFiles};
use crate::launch::{self, Launched};
use crate::layout::auto;
use crate::{gauges, terminal};

/// Threads that tokenize prompts: more would only take memory.
const BLOCKING_THREADS: usize = 8;

/// How long the end waits for threads that still read something.
const LAST_THREADS: Duration = Duration::from_secs(1);

/// Serves until told to stop.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    check_lists(args)?;
    let address = SocketAddr::new(args.host, args.port);
    warn_of_open_door(args);
    open_many_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    // The port is taken before anything is loaded: who asks for one that is in use hears it at once.
    let listener = runtime.block_on(TcpListener::bind(address)).with_context(|| {
        format!("{address} cannot be listened on; give another --port (0 takes a free one) or --host")
    })?;
    let files = files::open(&args.model, args.engine.seed)?;
    let engine = auto::decide(&files, &args.model, &args.engine, Objective::Throughput)?;
    let launched = launch::start(&files, &args.model, &engine)?;
    let bound = listener.local_addr()?;
    let state = server_state(args, &files, &launched);
    terminal::tell(&format!("phalanx serves {} at http://{bound}", state.model.id));
    let served = runtime.block_on(Server::new(state).serve(listener, told_to_stop()));
    // A thread that a driver or a disk does not give back must not keep the process.
    runtime.shutdown_timeout(LAST_THREADS);
    // What still runs had its time while the server drained.
    if !launched.router.shutdown(Duration::ZERO) {
        bail!("the engine did not end: a step in flight did not come back");
    }
    served.context("the server ended")
}

fn server_state(args: &ServeArgs, files: &ModelFiles, launched: &Launched) -> ServerState {
    let (id, aliases) = match args.served_model_name.split_first() {
        Some((first, others)) => (first.clone(), others.to_vec()),
        None => (files.name.clone(), Vec::new()),
    };
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let max_model_len = launched.router.max_model_len();
    let model = ModelCard { id, aliases, max_model_len, created, sampling: files.sampling.clone() };
    let api_keys = api_keys(args);
    let options = ServerOptions {
        // Without a key only pages of this machine may read answers.
        cors: if api_keys.is_empty() { Cors::Local } else { Cors::Any },
        api_keys,
        client_priorities: args.enable_client_priorities,
        hang_after: launch::LONGEST_STEP,
        drain_timeout: Duration::from_secs(args.shutdown_timeout),
        ..ServerOptions::default()
    };
    ServerState {
        engine: launched.router.clone(),
        tokenizer: files.tokenizer.clone(),
        template: files.template.clone(),
        model,
        options,
        families: std::iter::once(files.timeline.families())
            .chain(gauges::watch(launched))
            .chain(gauges::grown(launched))
            .collect(),
    }
}

/// Refuses a command line on which a list may have swallowed the model, as `serve --api-key KEY MODEL` does.
fn check_lists(args: &ServeArgs) -> Result<()> {
    if args.model.written().is_some() {
        return Ok(());
    }
    for (flag, values) in [("--api-key", &args.api_keys), ("--served-model-name", &args.served_model_name)] {
        if 1 < values.len() {
            bail!(
                "{flag} took {} values, which left no MODEL: write MODEL first, or --model MODEL",
                values.len()
            );
        }
    }
    Ok(())
}

/// The keys; an empty one, as an unset variable of a compose file gives it, is none.
fn api_keys(args: &ServeArgs) -> Vec<String> {
    args.api_keys.iter().filter(|key| !key.is_empty()).cloned().collect()
}

fn warn_of_open_door(args: &ServeArgs) {
    if !args.host.is_loopback() && api_keys(args).is_empty() {
        tracing::warn!(
            "listening on {} without --api-key: everybody who reaches this machine can use the model",
            args.host
        );
    }
}

/// Lets this process open as many files as it may: each connection is one, and the usual limit is 1,024.
fn open_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Completes at the first interrupt or termination; a second one ends the process at once.
async fn told_to_stop() {
    signal().await;
    tracing::info!("stopping: running requests may complete; interrupt again to end at once");
    tokio::spawn(async {
        signal().await;
        std::process::exit(130);
    });
}

async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("this process may handle signals");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
