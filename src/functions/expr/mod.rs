//! stub
use serde_json::Value;
#[derive(Debug, Clone)]
pub struct Expr(String);
#[derive(Debug, Clone, Copy)]
pub enum Roots {
    Event,
    EventAndAsync,
}
#[derive(Debug, Clone)]
pub struct ExprError {
    pub message: String,
    pub position: Option<usize>,
}
impl std::fmt::Display for ExprError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
#[derive(Debug, Clone)]
pub struct EvalError(pub String);
impl std::fmt::Display for EvalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
pub struct Scope<'a> {
    pub event: Option<&'a Value>,
    pub async_event: Option<&'a Value>,
    pub now_ms: i64,
}
impl Expr {
    pub fn parse(text: &str) -> Result<Self, ExprError> {
        Ok(Self(text.into()))
    }
    pub fn compile(text: &str, _: Roots) -> Result<Self, ExprError> {
        Ok(Self(text.into()))
    }
    pub fn check(&self, _: Roots) -> Result<(), ExprError> {
        Ok(())
    }
    pub fn matches(&self, _: &Scope<'_>) -> Result<bool, EvalError> {
        Ok(true)
    }
    pub fn substitute_event(&self, _: &Value) -> Result<String, EvalError> {
        Ok(self.0.clone())
    }
}
