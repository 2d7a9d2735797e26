//! stand-in
use super::*;
/// x
pub struct HttpOptions {
    /// x
    pub secret: Option<secrecy::SecretString>,
    /// x
    pub retry_client_errors: bool,
    /// x
    pub headers: Vec<(String, String)>,
}
/// x
pub struct HttpHandler(String);
impl HttpHandler {
    /// x
    pub fn new(t: &str, _o: HttpOptions) -> Result<Self, String> {
        Ok(Self(t.into()))
    }
}
impl Handler for HttpHandler {
    fn kind(&self) -> &'static str {
        "http"
    }
    fn target(&self) -> &str {
        &self.0
    }
    fn run(&self, _d: Dispatch) -> BoxFuture<'_, Outcome> {
        Box::pin(async { Outcome::Done })
    }
}
