//! Evaluation: one walk over the tree, bounded by steps.

use cel::common::ast::operators as op;
use serde_json::Value;

use super::functions;
use super::node::{Fold, Node};
use super::values::{Val, add, arithmetic, compare, equal, same};
use super::{EvalError, STEPS, Scope};

/// One evaluation.
pub(super) struct Evaluation<'a> {
    scope: &'a Scope<'a>,
    locals: Vec<(String, Val<'a>)>,
    steps: u32,
    /// Names are the event's own fields.
    is_of_envelope: bool,
}

impl<'a> Evaluation<'a> {
    pub const fn new(scope: &'a Scope<'a>) -> Self {
        Self { scope, locals: Vec::new(), steps: 0, is_of_envelope: false }
    }

    pub fn of_envelope(scope: &'a Scope<'a>) -> Self {
        Self { is_of_envelope: true, ..Self::new(scope) }
    }

    pub fn value(&mut self, node: &'a Node) -> Result<Val<'a>, EvalError> {
        self.steps += 1;
        if self.steps > STEPS {
            return Err(EvalError(format!("it takes more than {STEPS} steps")));
        }
        match node {
            Node::Literal(value) => Ok(Val::borrowed(value)),
            Node::Name(name) => self.name(name),
            Node::Field(of, field) => Ok(self.value(of)?.field(field)),
            Node::Has(of, field) => Ok(Val::own(self.value(of)?.field(field).as_value().is_some())),
            Node::List(items) => {
                let items: Result<Vec<Value>, EvalError> =
                    items.iter().map(|item| Ok(self.value(item)?.into_value())).collect();
                Ok(Val::own(items?))
            }
            Node::Map(entries) => {
                let mut map = serde_json::Map::new();
                for (key, value) in entries {
                    let key = super::values::text(&self.value(key)?);
                    map.insert(key, self.value(value)?.into_value());
                }
                Ok(Val::own(Value::Object(map)))
            }
            Node::Call(name, args) => self.call(name, args),
            Node::Fold(fold) => self.fold(fold),
        }
    }

    fn name(&self, name: &str) -> Result<Val<'a>, EvalError> {
        if let Some((_, value)) = self.locals.iter().rev().find(|(local, _)| local == name) {
            return Ok(value.clone());
        }
        let root = |value: Option<&'a Value>| Ok(value.map_or(Val::Missing, Val::borrowed));
        if self.is_of_envelope {
            return root(self.scope.event.and_then(|envelope| envelope.get(name)));
        }
        match name {
            "event" => root(self.scope.event),
            "async" => root(self.scope.async_event),
            "vars" => Ok(Val::Missing),
            _ => Err(EvalError(format!("there is no `{name}` to look at"))),
        }
    }

    fn call(&mut self, name: &str, args: &'a [Node]) -> Result<Val<'a>, EvalError> {
        match (name, args) {
            (op::LOGICAL_AND, [one, other]) => self.both(one, other, false),
            (op::LOGICAL_OR, [one, other]) => self.both(one, other, true),
            (op::LOGICAL_NOT, [one]) => Ok(Val::own(!self.value(one)?.is_true())),
            (op::NOT_STRICTLY_FALSE, [one]) => Ok(Val::own(self.value(one).map_or(true, |value| value.is_true()))),
            (op::CONDITIONAL, [condition, yes, no]) => {
                let taken = if self.value(condition)?.is_true() { yes } else { no };
                self.value(taken)
            }
            (_, [one, other]) => {
                let (one, other) = (self.value(one)?, self.value(other)?);
                self.binary(name, one, other)
            }
            _ => {
                let args = args.iter().map(|arg| self.value(arg)).collect::<Result<Vec<_>, _>>()?;
                functions::call(name, args, self.scope.now_ms)
            }
        }
    }

    /// `&&` and `||`: the side that decides makes up for an error of the other.
    fn both(&mut self, one: &'a Node, other: &'a Node, decides: bool) -> Result<Val<'a>, EvalError> {
        let first = self.value(one).map(|value| value.is_true());
        if first == Ok(decides) {
            return Ok(Val::own(decides));
        }
        let second = self.value(other).map(|value| value.is_true());
        if second == Ok(decides) {
            return Ok(Val::own(decides));
        }
        first.and(second).map(Val::own)
    }

    fn binary(&mut self, name: &str, one: Val<'a>, other: Val<'a>) -> Result<Val<'a>, EvalError> {
        match name {
            op::EQUALS => Ok(Val::own(equal(&one, &other))),
            op::NOT_EQUALS => Ok(Val::own(!equal(&one, &other))),
            op::LESS => compare(&one, &other, std::cmp::Ordering::is_lt).map(Val::own),
            op::LESS_EQUALS => compare(&one, &other, std::cmp::Ordering::is_le).map(Val::own),
            op::GREATER => compare(&one, &other, std::cmp::Ordering::is_gt).map(Val::own),
            op::GREATER_EQUALS => compare(&one, &other, std::cmp::Ordering::is_ge).map(Val::own),
            op::ADD => add(one, other),
            op::SUBSTRACT => arithmetic("-", &one, &other),
            op::MULTIPLY => arithmetic("*", &one, &other),
            op::DIVIDE => arithmetic("/", &one, &other),
            op::MODULO => arithmetic("%", &one, &other),
            op::INDEX => Ok(match other.as_value() {
                Some(key) => one.member(key),
                None => Val::Missing,
            }),
            op::IN => Ok(Val::own(match (one.as_value(), other.as_value()) {
                (Some(item), Some(Value::Array(items))) => items.iter().any(|other| same(item, other)),
                (Some(Value::String(key)), Some(Value::Object(members))) => members.contains_key(key),
                _ => false,
            })),
            _ => functions::call(name, vec![one, other], self.scope.now_ms),
        }
    }

    fn fold(&mut self, fold: &'a Fold) -> Result<Val<'a>, EvalError> {
        let range = self.value(&fold.range)?;
        if range.as_value().is_none() {
            return Ok(Val::own(false));
        }
        let range = range.into_value();
        let pairs: Vec<(Value, Value)> = match range {
            Value::Array(items) if fold.value.is_some() => {
                items.into_iter().enumerate().map(|(index, item)| (index.into(), item)).collect()
            }
            Value::Array(items) => items.into_iter().map(|item| (item, Value::Null)).collect(),
            Value::Object(members) => members.into_iter().map(|(key, value)| (key.into(), value)).collect(),
            Value::Null => Vec::new(),
            other => return Err(EvalError(format!("{} can't be gone over", super::values::kind(&other)))),
        };
        let known = self.locals.len();
        let start = self.value(&fold.start)?;
        self.locals.push((fold.result_name.clone(), start));
        let result = self.go_over(fold, pairs, known);
        self.locals.truncate(known);
        result
    }

    fn go_over(&mut self, fold: &'a Fold, pairs: Vec<(Value, Value)>, place: usize) -> Result<Val<'a>, EvalError> {
        for (item, value) in pairs {
            let known = self.locals.len();
            self.locals.push((fold.item.clone(), Val::own(item)));
            if let Some(name) = &fold.value {
                self.locals.push((name.clone(), Val::own(value)));
            }
            let goes_on = self.value(&fold.goes_on)?.is_true();
            let next = if goes_on { Some(self.value(&fold.step)?) } else { None };
            self.locals.truncate(known);
            let Some(next) = next else { break };
            self.locals[place].1 = next;
        }
        self.value(&fold.result)
    }
}
