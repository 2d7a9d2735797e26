//! The syntax tree, made of the parser's: macros are expanded already, operators are functions.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cel::Program;
use cel::common::ast::{EntryExpr, Expr as Ast, IdedExpr, LiteralValue, operators};
use serde_json::Value;

use super::functions::is_function;
use super::{ENVELOPE, ExprError, MAX_DEPTH, Roots};

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Literal(Value),
    Name(String),
    /// `of.field`.
    Field(Box<Node>, String),
    /// `has(of.field)`.
    Has(Box<Node>, String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    /// Operators and functions; the target of a method comes first.
    Call(String, Vec<Node>),
    Fold(Box<Fold>),
}

/// A macro over a list or a map: `exists`, `all`, `exists_one`, `filter`, `map`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fold {
    pub range: Node,
    pub item: String,
    /// Of a map: `item` is its key then.
    pub value: Option<String>,
    pub result_name: String,
    pub start: Node,
    pub goes_on: Node,
    pub step: Node,
    pub result: Node,
}

/// Sources up to this many bytes are parsed on the caller's stack.
const SHORT: usize = 256;
/// Stack for longer ones: the parser recurses once per operator of a chain.
const STACK_BYTES: usize = 64 << 20;

pub(super) fn parse(text: &str) -> Result<Node, ExprError> {
    if text.len() <= SHORT {
        return parse_here(text);
    }
    let owned = text.to_owned();
    let parsing = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || parse_here(&owned));
    let failed = || ExprError::new("it can't be parsed");
    parsing.map_err(|_| failed())?.join().map_err(|_| failed())?
}

fn parse_here(text: &str) -> Result<Node, ExprError> {
    // The parser is somebody else's: a panic of it must not be ours.
    let program = catch_unwind(AssertUnwindSafe(|| Program::compile(text)))
        .map_err(|_| ExprError::new("it can't be parsed"))?
        .map_err(|errors| {
            let Some(first) = errors.errors.first() else { return ExprError::new("it can't be parsed") };
            ExprError { message: first.msg.clone(), position: position(text, first.pos) }
        })?;
    convert(program.expression(), 0)
}

/// Line and column from 1 as bytes from the start.
fn position(text: &str, (line, column): (isize, isize)) -> Option<usize> {
    let line = usize::try_from(line).ok()?.checked_sub(1)?;
    let column = usize::try_from(column).ok()?.saturating_sub(1);
    let before: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    Some((before + column).min(text.len()))
}

fn convert(expr: &IdedExpr, depth: usize) -> Result<Node, ExprError> {
    if depth > MAX_DEPTH {
        return Err(ExprError::new(format!("it is nested deeper than {MAX_DEPTH} levels")));
    }
    let below = |expr: &IdedExpr| convert(expr, depth + 1);
    let all = |list: &[IdedExpr]| list.iter().map(below).collect::<Result<Vec<_>, _>>();
    Ok(match &expr.expr {
        Ast::Unspecified => return Err(ExprError::new("it is not complete")),
        Ast::Literal(literal) => Node::Literal(self::literal(literal)?),
        Ast::Ident(name) => Node::Name(name.clone()),
        Ast::Select(select) if select.test => Node::Has(Box::new(below(&select.operand)?), select.field.clone()),
        Ast::Select(select) => Node::Field(Box::new(below(&select.operand)?), select.field.clone()),
        Ast::List(list) => Node::List(all(&list.elements)?),
        Ast::Map(map) => {
            let entry = |entry: &cel::common::ast::IdedEntryExpr| match &entry.expr {
                EntryExpr::MapEntry(entry) => Ok((below(&entry.key)?, below(&entry.value)?)),
                EntryExpr::StructField(_) => Err(ExprError::new("objects of a type can't be made here")),
            };
            Node::Map(map.entries.iter().map(entry).collect::<Result<_, _>>()?)
        }
        Ast::Struct(_) => return Err(ExprError::new("objects of a type can't be made here")),
        Ast::Call(call) => {
            let mut args = Vec::with_capacity(call.args.len() + 1);
            if let Some(target) = &call.target {
                args.push(below(target)?);
            }
            args.extend(all(&call.args)?);
            Node::Call(call.func_name.clone(), args)
        }
        Ast::Comprehension(fold) => Node::Fold(Box::new(Fold {
            range: below(&fold.iter_range)?,
            item: fold.iter_var.clone(),
            value: fold.iter_var2.clone(),
            result_name: fold.accu_var.clone(),
            start: below(&fold.accu_init)?,
            goes_on: below(&fold.loop_cond)?,
            step: below(&fold.loop_step)?,
            result: below(&fold.result)?,
        })),
    })
}

fn literal(literal: &LiteralValue) -> Result<Value, ExprError> {
    Ok(match literal {
        LiteralValue::Boolean(value) => (*value.inner()).into(),
        LiteralValue::Int(value) => (*value.inner()).into(),
        LiteralValue::UInt(value) => (*value.inner()).into(),
        LiteralValue::Double(value) => (*value.inner()).into(),
        LiteralValue::String(value) => value.inner().into(),
        LiteralValue::Null => Value::Null,
        LiteralValue::Bytes(_) => return Err(ExprError::new("bytes are not supported")),
    })
}

impl Node {
    /// Whether only declared names and known functions occur.
    pub fn check(&self, roots: Roots, locals: &mut Vec<String>) -> Result<(), ExprError> {
        match self {
            Self::Literal(_) => Ok(()),
            Self::Name(name) => {
                let is_root = match roots {
                    Roots::Envelope => ENVELOPE.contains(&name.as_str()),
                    Roots::Event => matches!(name.as_str(), "event" | "vars"),
                    Roots::EventAndAsync => matches!(name.as_str(), "event" | "vars" | "async"),
                };
                if is_root || locals.contains(name) {
                    return Ok(());
                }
                Err(ExprError::new(format!("there is no `{name}` to look at")))
            }
            Self::Field(of, _) | Self::Has(of, _) => of.check(roots, locals),
            Self::List(items) => items.iter().try_for_each(|item| item.check(roots, locals)),
            Self::Map(entries) => entries.iter().try_for_each(|(key, value)| {
                key.check(roots, locals)?;
                value.check(roots, locals)
            }),
            Self::Call(name, args) => {
                if !is_function(name) {
                    return Err(ExprError::new(format!("there is no function `{name}`")));
                }
                args.iter().try_for_each(|arg| arg.check(roots, locals))
            }
            Self::Fold(fold) => {
                fold.range.check(roots, locals)?;
                fold.start.check(roots, locals)?;
                let known = locals.len();
                locals.push(fold.result_name.clone());
                let result = fold.result.check(roots, locals);
                locals.push(fold.item.clone());
                locals.extend(fold.value.clone());
                let inner = fold.goes_on.check(roots, locals).and_then(|()| fold.step.check(roots, locals));
                locals.truncate(known);
                result.and(inner)
            }
        }
    }

    /// The member paths below the root `name`; an empty one stands for all of it.
    pub fn paths<'a>(&'a self, name: &str, into: &mut Vec<Vec<&'a str>>) {
        if let Some(path) = self.path(name) {
            into.push(path);
            return;
        }
        match self {
            Self::Literal(_) | Self::Name(_) => {}
            Self::Field(of, _) | Self::Has(of, _) => of.paths(name, into),
            Self::List(items) | Self::Call(_, items) => {
                // The index itself may be a path of its own.
                items.iter().for_each(|item| item.paths(name, into));
            }
            Self::Map(entries) => entries.iter().for_each(|(key, value)| {
                key.paths(name, into);
                value.paths(name, into);
            }),
            Self::Fold(fold) => {
                for node in [&fold.range, &fold.start, &fold.goes_on, &fold.step, &fold.result] {
                    node.paths(name, into);
                }
            }
        }
    }

    /// Equalities of a field of `async` with something else that must hold for the whole to hold.
    pub fn equalities(&self) -> Vec<(Vec<&str>, &Self)> {
        let Self::Call(name, args) = self else { return Vec::new() };
        match (name.as_str(), &args[..]) {
            (operators::LOGICAL_AND, all) => all.iter().flat_map(Self::equalities).collect(),
            (operators::EQUALS, [one, other]) => {
                let is_test = |of: &Self| matches!(of, Self::Has(..));
                if is_test(one) || is_test(other) {
                    return Vec::new();
                }
                let field = |of: &Self| of.path("async").is_some_and(|path| !path.is_empty());
                let pair = match (field(one), field(other)) {
                    (true, false) => Some((one, other)),
                    (false, true) => Some((other, one)),
                    _ => None,
                };
                pair.and_then(|(of, with)| Some((of.path("async")?, with))).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    pub fn path(&self, root: &str) -> Option<Vec<&str>> {
        match self {
            Self::Name(name) => (name == root).then(Vec::new),
            Self::Field(of, field) | Self::Has(of, field) => {
                let mut path = of.path(root)?;
                path.push(field);
                Some(path)
            }
            Self::Call(name, args) if name == operators::INDEX => match &args[..] {
                [of, Self::Literal(Value::String(field))] => {
                    let mut path = of.path(root)?;
                    path.push(field);
                    Some(path)
                }
                _ => None,
            },
            _ => None,
        }
    }
}
