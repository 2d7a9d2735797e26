//! The `joelclaw` command.

fn main() -> std::process::ExitCode {
    system_bus::cli::run()
}
