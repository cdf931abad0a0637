use std::process::ExitCode;

use karta_shared::worker;

#[tokio::main]
async fn main() -> ExitCode {
    worker::run::<worker_turns_sweep::TurnsSweep>().await
}
