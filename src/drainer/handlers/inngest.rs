//! stand-in
use super::*;
/// x
#[derive(Debug, Clone)]
pub struct InngestServer {
    /// x
    pub base_url: String,
    /// x
    pub key: secrecy::SecretString,
}
/// x
pub struct InngestHandler(String);
impl InngestHandler {
    /// x
    pub fn new(_s: &InngestServer, t: crate::streams::family::Family) -> Result<Self, String> {
        Ok(Self(t.to_string()))
    }
}
impl Handler for InngestHandler {
    fn kind(&self) -> &'static str {
        "inngest"
    }
    fn target(&self) -> &str {
        &self.0
    }
    fn run(&self, _d: Dispatch) -> BoxFuture<'_, Outcome> {
        Box::pin(async { Outcome::Done })
    }
}
