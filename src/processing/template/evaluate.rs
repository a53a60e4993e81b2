//! Evaluation: statement by statement, every step charged to one budget.

use std::collections::BTreeMap;

use minijinja::machinery::ast::{BinOpKind, CompareOpKind};

use super::functions::{self, ArgumentValues, Function};
use super::tree::{Arguments, Expression, Loop, Statement, Target};
use super::{Failure, MAX_OUTPUT, Result, Value, fails};
use crate::error::excerpt;

/// The remaining budget.
pub(super) struct Budget(u64);

impl Budget {
    pub(super) fn spend(&mut self, steps: u64) -> Result<()> {
        self.0 = self.0.checked_sub(steps).ok_or(Failure::OutOfBudget)?;
        Ok(())
    }

    /// Charges a text of this length.
    pub(super) fn spend_bytes(&mut self, bytes: usize) -> Result<()> {
        self.spend(bytes as u64 / 8)
    }

    /// Charges a list of this length.
    pub(super) fn spend_items(&mut self, items: usize) -> Result<()> {
        self.spend((items as u64).saturating_mul(4))
    }
}

/// Effect of a statement on the loop around it.
#[derive(PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

struct Evaluation<'a> {
    budget: Budget,
    globals: &'a BTreeMap<&'a str, Value>,
    /// Variables, the innermost last; the end of a scope truncates them.
    names: Vec<(String, Value)>,
    /// Start of the innermost scope: `set` replaces variables from here on.
    scope: usize,
    namespaces: Vec<BTreeMap<String, Value>>,
    output: String,
}

/// Evaluates a template.
pub(super) fn render(body: &[Statement], globals: &BTreeMap<&str, Value>, budget: u64) -> Result<String> {
    let mut evaluation = Evaluation {
        budget: Budget(budget),
        globals,
        names: Vec::new(),
        scope: 0,
        namespaces: Vec::new(),
        output: String::new(),
    };
    evaluation.run(body)?;
    Ok(evaluation.output)
}

impl Evaluation<'_> {
    fn run(&mut self, body: &[Statement]) -> Result<Flow> {
        for statement in body {
            self.budget.spend(1)?;
            let flow = self.statement(statement)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// Runs `body` in a new scope with the variables `names`.
    fn run_inside(&mut self, names: Vec<(String, Value)>, body: &[Statement]) -> Result<Flow> {
        let (scope, length) = (self.scope, self.names.len());
        self.scope = length;
        self.names.extend(names);
        let flow = self.run(body);
        self.names.truncate(length);
        self.scope = scope;
        flow
    }

    fn statement(&mut self, statement: &Statement) -> Result<Flow> {
        match statement {
            Statement::Raw(text) => self.write(text)?,
            Statement::Emit(expression) => match self.value(expression)? {
                Value::Str(text) => self.write(&text)?,
                other => {
                    let text = other.text(&mut self.budget)?;
                    self.write(&text)?;
                }
            },
            Statement::If(condition, yes, no) => {
                let body = if self.value(condition)?.is_true() { yes } else { no };
                return self.run(body);
            }
            Statement::For(repeated) => return self.repeat(repeated),
            Statement::Set(target, expression) => {
                let value = self.value(expression)?;
                for (name, value) in self.assigned(target, value)? {
                    self.set(name, value);
                }
            }
            Statement::Capture(name, body) => {
                let before = std::mem::take(&mut self.output);
                let flow = self.run_inside(Vec::new(), body);
                let text = std::mem::replace(&mut self.output, before);
                let flow = flow?;
                self.set(name.clone(), text.into());
                return Ok(flow);
            }
            Statement::With(assignments, body) => {
                let mut names = Vec::new();
                for (target, expression) in assignments {
                    let value = self.value(expression)?;
                    names.extend(self.assigned(target, value)?);
                }
                return self.run_inside(names, body);
            }
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.budget.spend_bytes(text.len())?;
        if self.output.len() + text.len() > MAX_OUTPUT {
            return Err(Failure::TooLong);
        }
        self.output.push_str(text);
        Ok(())
    }

    /// Charges the linear search for a variable.
    fn spend_search(&mut self, name: &str) -> Result<()> {
        self.budget.spend((self.names.len() / 16) as u64)?;
        self.budget.spend_bytes(name.len())
    }

    fn set(&mut self, name: String, value: Value) {
        match self.names[self.scope..]
            .iter_mut()
            .find(|(known, _)| *known == name)
        {
            Some(known) => known.1 = value,
            None => self.names.push((name, value)),
        }
    }

    /// Returns the variables that an assignment sets; a field of a namespace is set here.
    fn assigned(&mut self, target: &Target, value: Value) -> Result<Vec<(String, Value)>> {
        match target {
            Target::Name(name) => {
                self.spend_search(name)?;
                Ok(vec![(name.clone(), value)])
            }
            Target::Names(names) => {
                for name in names {
                    self.spend_search(name)?;
                }
                let items = functions::iterate(&value, &mut self.budget)?;
                if items.len() != names.len() {
                    return fails(format!("{} values for {} names", items.len(), names.len()));
                }
                Ok(names.iter().cloned().zip(items).collect())
            }
            Target::Field(namespace, field) => match self.value(namespace)? {
                Value::Namespace(number) => {
                    self.spend_search(field)?;
                    self.namespaces[number].insert(field.clone(), value);
                    Ok(Vec::new())
                }
                other => fails(format!(
                    "only a namespace's fields can be set, not those of {}",
                    other.kind()
                )),
            },
        }
    }

    fn repeat(&mut self, repeated: &Loop) -> Result<Flow> {
        let iterable = self.value(&repeated.items)?;
        let mut items = functions::iterate(&iterable, &mut self.budget)?;
        if let Some(condition) = &repeated.condition {
            let mut kept = Vec::new();
            for item in items {
                let length = self.names.len();
                let names = self.assigned(&repeated.target, item.clone())?;
                self.names.extend(names);
                let keep = self.value(condition);
                self.names.truncate(length);
                if keep?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            return self.run_inside(Vec::new(), &repeated.otherwise);
        }
        let count = items.len();
        for (i, item) in items.iter().enumerate() {
            let neighbour = |at: Option<usize>| {
                at.and_then(|at| items.get(at))
                    .cloned()
                    .unwrap_or(Value::Undefined)
            };
            let entries: [(&str, Value); 9] = [
                ("index", (i + 1).into()),
                ("index0", i.into()),
                ("revindex", (count - i).into()),
                ("revindex0", (count - i - 1).into()),
                ("first", Value::Bool(i == 0)),
                ("last", Value::Bool(i + 1 == count)),
                ("length", count.into()),
                ("previtem", neighbour(i.checked_sub(1))),
                ("nextitem", neighbour(Some(i + 1))),
            ];
            self.budget.spend_items(entries.len())?;
            let mut names = self.assigned(&repeated.target, item.clone())?;
            // An item may have the maximum depth; the loop state does not add to it.
            let entries = entries.map(|(name, value)| (name.into(), value));
            names.push(("loop".to_owned(), Value::loop_state(entries.into())));
            if self.run_inside(names, &repeated.body)? == Flow::Break {
                break;
            }
        }
        Ok(Flow::Next)
    }

    fn value(&mut self, expression: &Expression) -> Result<Value> {
        self.budget.spend(1)?;
        match expression {
            Expression::Constant(value) => Ok(value.clone()),
            Expression::Name(name) => {
                self.spend_search(name)?;
                let set = self.names.iter().rev().find(|(known, _)| known == name);
                let value = set
                    .map(|(_, value)| value)
                    .or_else(|| self.globals.get(name.as_str()));
                Ok(value.cloned().unwrap_or(Value::Undefined))
            }
            Expression::List(items) => {
                self.budget.spend_items(items.len())?;
                let items = items.iter().map(|item| self.value(item)).collect::<Result<_>>()?;
                Value::list(items)
            }
            Expression::Map(entries) => {
                self.budget.spend_items(2 * entries.len())?;
                let entries = entries.iter().map(|(key, value)| match self.value(key)? {
                    Value::Str(key) => Ok((key, self.value(value)?)),
                    other => fails(format!("a mapping's key is {}, not a string", other.kind())),
                });
                let entries = entries.collect::<Result<_>>()?;
                Value::map(entries)
            }
            Expression::Not(inner) => Ok(Value::Bool(!self.value(inner)?.is_true())),
            Expression::Negative(inner) => match self.value(inner)? {
                Value::Float(number) => Ok(Value::Float(-number)),
                other => match other.as_int().and_then(i64::checked_neg) {
                    Some(number) => Ok(Value::Int(number)),
                    None => fails(format!("{} has no negative", other.kind())),
                },
            },
            Expression::And(both) => {
                let left = self.value(&both[0])?;
                if left.is_true() {
                    self.value(&both[1])
                } else {
                    Ok(left)
                }
            }
            Expression::Or(both) => {
                let left = self.value(&both[0])?;
                if left.is_true() {
                    Ok(left)
                } else {
                    self.value(&both[1])
                }
            }
            Expression::Arithmetic(kind, both) => {
                let (left, right) = (self.value(&both[0])?, self.value(&both[1])?);
                self.arithmetic(*kind, &left, &right)
            }
            Expression::Compare(first, others) => {
                let mut left = self.value(first)?;
                for (kind, next) in others {
                    let right = self.value(next)?;
                    if !self.compare(*kind, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expression::Choice(choice) => match (self.value(&choice.0)?.is_true(), &choice.2) {
                (true, _) => self.value(&choice.1),
                (false, Some(otherwise)) => self.value(otherwise),
                (false, None) => Ok(Value::Undefined),
            },
            Expression::Attribute(of, name) => {
                let of = self.value(of)?;
                self.attribute(&of, name)
            }
            Expression::Item(both) => {
                let (of, key) = (self.value(&both[0])?, self.value(&both[1])?);
                self.item(&of, &key)
            }
            Expression::Slice(of, bounds) => self.slice(of, bounds),
            Expression::Filter(filter, of, arguments) => {
                let value = self.value(of)?;
                let arguments = self.arguments(arguments)?;
                functions::filter(*filter, value, arguments, &mut self.budget)
            }
            Expression::Test(test, of, arguments) => {
                let value = self.value(of)?;
                let arguments = arguments.iter().map(|argument| self.value(argument));
                let arguments = arguments.collect::<Result<Vec<_>>>()?;
                functions::test(*test, &value, &arguments, &mut self.budget).map(Value::Bool)
            }
            Expression::Function(function, arguments) => {
                let arguments = self.arguments(arguments)?;
                self.call(*function, arguments)
            }
            Expression::Method(method, of, arguments) => {
                let value = self.value(of)?;
                let arguments = self.arguments(arguments)?;
                functions::method(*method, value, arguments, &mut self.budget)
            }
        }
    }

    fn arguments(&mut self, (positional, named): &Arguments) -> Result<ArgumentValues> {
        let positional = positional.iter().map(|argument| self.value(argument));
        let positional = positional.collect::<Result<_>>()?;
        let named = named
            .iter()
            .map(|(name, argument)| Ok((name.clone(), self.value(argument)?)));
        Ok(ArgumentValues {
            positional,
            named: named.collect::<Result<_>>()?,
        })
    }

    fn call(&mut self, function: Function, arguments: ArgumentValues) -> Result<Value> {
        match function {
            Function::Range => functions::range(arguments, &mut self.budget),
            Function::RaiseException => functions::raise_exception(arguments),
            Function::StrftimeNow => functions::strftime_now(arguments, &mut self.budget),
            Function::Namespace => {
                if !arguments.positional.is_empty() {
                    return fails("a namespace takes named values");
                }
                self.budget.spend_items(8 + arguments.named.len())?;
                self.namespaces.push(arguments.named.into_iter().collect());
                Ok(Value::Namespace(self.namespaces.len() - 1))
            }
        }
    }

    fn attribute(&mut self, of: &Value, name: &str) -> Result<Value> {
        let found = match of {
            Value::Undefined => {
                return fails(format!("`{}` is accessed on an undefined value", excerpt(name)));
            }
            Value::Namespace(number) => self.namespaces[*number].get(name),
            Value::Map(map) => {
                self.budget.spend(map.entries.len() as u64)?;
                of.entry(name)
            }
            _ => None,
        };
        Ok(found.cloned().unwrap_or(Value::Undefined))
    }

    fn item(&mut self, of: &Value, key: &Value) -> Result<Value> {
        if let Value::Str(name) = key {
            return self.attribute(of, name);
        }
        let Some(index) = key.as_int() else {
            return match of {
                Value::Undefined => fails("an item is accessed on an undefined value"),
                _ => Ok(Value::Undefined),
            };
        };
        let from_end = |length: usize| {
            let length = i64::try_from(length).unwrap_or(i64::MAX);
            usize::try_from(if index < 0 {
                index.saturating_add(length)
            } else {
                index
            })
            .ok()
        };
        Ok(match of {
            Value::List(list) => from_end(list.items.len()).and_then(|at| list.items.get(at).cloned()),
            Value::Str(text) => {
                self.budget.spend_bytes(2 * text.len())?;
                let at = from_end(text.chars().count());
                at.and_then(|at| text.chars().nth(at))
                    .map(|character| character.to_string().into())
            }
            Value::Undefined => return fails("an item is accessed on an undefined value"),
            _ => None,
        }
        .unwrap_or(Value::Undefined))
    }

    fn slice(&mut self, of: &Expression, bounds: &[Option<Expression>; 3]) -> Result<Value> {
        let of = self.value(of)?;
        let mut numbers = [None; 3];
        for (number, bound) in numbers.iter_mut().zip(bounds) {
            if let Some(bound) = bound {
                let value = self.value(bound)?;
                *number = value.as_int();
                if number.is_none() && !matches!(value, Value::None) {
                    return fails(format!("a slice's bound is {}", value.kind()));
                }
            }
        }
        if !matches!(of, Value::List(_) | Value::Str(_)) {
            return fails(format!("{} cannot be sliced", of.kind()));
        }
        let items = functions::iterate(&of, &mut self.budget)?;
        let [start, stop, step] = numbers;
        let picked = sliced(items.len(), start, stop, step.unwrap_or(1))?;
        let picked: Vec<Value> = picked
            .into_iter()
            .filter_map(|at| items.get(at).cloned())
            .collect();
        match of {
            Value::Str(_) => {
                let mut text = String::new();
                for item in &picked {
                    item.print(&mut text, false, &mut self.budget)?;
                }
                Ok(text.into())
            }
            _ => Value::list(picked),
        }
    }

    fn arithmetic(&mut self, kind: BinOpKind, left: &Value, right: &Value) -> Result<Value> {
        match (kind, left, right) {
            (BinOpKind::Concat, _, _) => {
                let mut text = left.text(&mut self.budget)?;
                right.print(&mut text, false, &mut self.budget)?;
                Ok(text.into())
            }
            (BinOpKind::Add, Value::Str(a), Value::Str(b)) => {
                self.budget.spend_bytes(a.len() + b.len())?;
                Ok(format!("{a}{b}").into())
            }
            (BinOpKind::Add, Value::List(a), Value::List(b)) => {
                self.budget.spend_items(a.items.len() + b.items.len())?;
                Value::list(a.items.iter().chain(&b.items).cloned().collect())
            }
            (BinOpKind::Mul, Value::Str(text), times) | (BinOpKind::Mul, times, Value::Str(text))
                if times.as_int().is_some() =>
            {
                let times = usize::try_from(times.as_int().unwrap_or(0)).unwrap_or(0);
                self.budget.spend_bytes(text.len().saturating_mul(times))?;
                Ok(text.repeat(times).into())
            }
            _ => numbers(kind, left, right),
        }
    }

    fn compare(&mut self, kind: CompareOpKind, left: &Value, right: &Value) -> Result<bool> {
        let order = match kind {
            CompareOpKind::Eq => return left.equals(right, &mut self.budget),
            CompareOpKind::Ne => return Ok(!left.equals(right, &mut self.budget)?),
            CompareOpKind::In => return functions::contains(right, left, &mut self.budget),
            CompareOpKind::NotIn => return Ok(!functions::contains(right, left, &mut self.budget)?),
            _ => match (left, right) {
                (Value::Str(a), Value::Str(b)) => {
                    self.budget.spend_bytes(a.len().min(b.len()))?;
                    Some(a.cmp(b))
                }
                _ => match (left.as_float(), right.as_float()) {
                    (Some(a), Some(b)) => a.partial_cmp(&b),
                    _ => return fails(format!("{} and {} have no order", left.kind(), right.kind())),
                },
            },
        };
        Ok(order.is_some_and(|order| match kind {
            CompareOpKind::Lt => order.is_lt(),
            CompareOpKind::Lte => order.is_le(),
            CompareOpKind::Gt => order.is_gt(),
            _ => order.is_ge(),
        }))
    }
}

/// Python's arithmetic on numbers.
fn numbers(kind: BinOpKind, left: &Value, right: &Value) -> Result<Value> {
    let wrong = || {
        fails(format!(
            "{} and {} cannot be calculated with",
            left.kind(),
            right.kind()
        ))
    };
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        let whole = match kind {
            BinOpKind::Add => a.checked_add(b),
            BinOpKind::Sub => a.checked_sub(b),
            BinOpKind::Mul => a.checked_mul(b),
            BinOpKind::FloorDiv if b != 0 => a
                .checked_div(b)
                .map(|q| q - i64::from(a % b != 0 && (a < 0) != (b < 0))),
            BinOpKind::Rem if b != 0 => a
                .checked_rem(b)
                .map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
            BinOpKind::Div if b != 0 => return Ok(Value::Float(a as f64 / b as f64)),
            _ => None,
        };
        return match whole {
            Some(whole) => Ok(Value::Int(whole)),
            None => fails("a whole number leaves 64 bits or is divided by zero"),
        };
    }
    let (Some(a), Some(b)) = (left.as_float(), right.as_float()) else {
        return wrong();
    };
    Ok(Value::Float(match kind {
        BinOpKind::Add => a + b,
        BinOpKind::Sub => a - b,
        BinOpKind::Mul => a * b,
        BinOpKind::Div if b != 0.0 => a / b,
        BinOpKind::FloorDiv if b != 0.0 => (a / b).floor(),
        BinOpKind::Rem if b != 0.0 => a - b * (a / b).floor(),
        _ => return wrong(),
    }))
}

/// Indices that Python's `[start:stop:step]` selects from `length` items.
fn sliced(length: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> Result<Vec<usize>> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let (low, high) = if step < 0 { (-1, length - 1) } else { (0, length) };
    let bound = |bound: Option<i64>, otherwise: i64| match bound {
        Some(bound) if bound < 0 => bound.saturating_add(length).clamp(low, high),
        Some(bound) => bound.clamp(low, high),
        None => otherwise,
    };
    let (mut at, stop) = match step {
        0 => return fails("a slice's step is 0"),
        1.. => (bound(start, low), bound(stop, high)),
        _ => (bound(start, high), bound(stop, low)),
    };
    let mut picked = Vec::new();
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        picked.extend(usize::try_from(at));
        at = at.saturating_add(step);
    }
    Ok(picked)
}
