//! The whole server around a fake model that repeats what it is told: for work on the page, and for trying clients.
//!
//! `cargo run -p phalanx-server --example page -- 127.0.0.1:8000 [API-KEY]`

#[path = "../tests/http/fake.rs"]
mod fake;

use std::error::Error;
use std::sync::Arc;

use phalanx_engine::{Engine, EngineOptions, Sampling};
use phalanx_scheduler::SchedulerConfig;
use phalanx_server::{ModelCard, Server, ServerOptions, ServerState};
use phalanx_text::ChatTemplate;
use tokio::net::TcpListener;

/// Only what was said last, so that the answer is a repetition of it.
const TEMPLATE: &str = "{{ messages[-1].content }}";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("give an address to listen on, as 127.0.0.1:8000")?;
    let tokenizer = fake::tokenizer();
    let max_model_len = 32768;
    let options = EngineOptions {
        name: "engine".to_owned(),
        scheduler: SchedulerConfig {
            num_blocks: 4096,
            block_size: 16,
            max_batched_tokens: 2048,
            max_sequences: 64,
            max_model_len,
            prefix_cache: true,
            overlap: false,
            stages: 1,
            hash_key: [7; 32],
        },
        vocab_size: fake::VOCAB,
        eos_token_ids: vec![fake::END],
        max_queue: 64,
    };
    let engine = Engine::start(options, Arc::clone(&tokenizer), Box::new(fake::Fake::default()))?;
    let server = Server::new(ServerState {
        engine: engine.into(),
        tokenizer,
        template: Some(Arc::new(ChatTemplate::new(TEMPLATE, "", "")?)),
        model: ModelCard {
            id: "phalanx/echo".to_owned(),
            aliases: Vec::new(),
            max_model_len,
            created: 0,
            sampling: Sampling::default(),
        },
        options: ServerOptions { api_keys: arguments.collect(), ..ServerOptions::default() },
        families: vec![Box::new(fake::families)],
    });
    server.serve(TcpListener::bind(address).await?, std::future::pending()).await?;
    Ok(())
}
