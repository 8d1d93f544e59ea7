//! One binary: `serve`, `chat`, `generate`, `pull`, `bench`, `plan`, `doctor`, `top`. Arguments are lowered once into values; no logic here.

mod args;
mod bench;
#[cfg(feature = "cuda")]
mod cards;
#[cfg(not(feature = "cuda"))]
#[path = "no_cards.rs"]
mod cards;
mod chat;
mod doctor;
mod files;
mod gauges;
mod generate;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(not(feature = "cuda"))]
#[path = "no_gpu.rs"]
mod gpu;
mod launch;
mod layout;
mod limits;
mod log;
mod no_room;
mod other_flags;
mod parse;
mod plan;
mod progress;
mod rehearsal;
mod serve;
mod steps;
mod terminal;
mod timeline;
mod top;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use log::Log;

/// Exit codes: 0 done, 1 failed while running, 2 wrong arguments (clap's), 3 the model could not be found or loaded.
const FAILED: u8 = 1;
const NO_MODEL: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| other_flags::explained(error).exit());
    let log = Log::start(&cli.log);
    let result = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Pull(args) => files::pull(&args.model),
        Command::Bench(args) => bench::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Top(args) => top::run(&args),
    };
    drop(log);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::complain(&error);
            ExitCode::from(if error.is::<files::NoModel>() { NO_MODEL } else { FAILED })
        }
    }
}
