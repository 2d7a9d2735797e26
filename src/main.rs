//! The `joelclaw` command.

fn main() {}
