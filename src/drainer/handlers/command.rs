//! stand-in
use super::*;
/// x
pub struct CommandSpec {
    /// x
    pub program: String,
    /// x
    pub args: Vec<String>,
    /// x
    pub permanent_exit: Vec<i32>,
}
/// x
pub struct CommandHandler(CommandSpec);
impl CommandHandler {
    /// x
    pub fn new(s: CommandSpec) -> Self {
        Self(s)
    }
}
impl Handler for CommandHandler {
    fn kind(&self) -> &'static str {
        "command"
    }
    fn target(&self) -> &str {
        &self.0.program
    }
    fn run(&self, _d: Dispatch) -> BoxFuture<'_, Outcome> {
        Box::pin(async { Outcome::Done })
    }
}
