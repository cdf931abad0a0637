use std::process::ExitCode;

use karta_local::cli;

/// SQLite, the SDK and JSON make many small allocations in this process. With mimalloc, listing 50
/// keys is 25 % faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match cli::execute(cli::Arguments::read()).await {
        Ok(code) => code,
        Err(error) => {
            cli::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
