//! Syntax tree of the supported subset of Jinja, with owned nodes.

use minijinja::machinery::ast::{self, BinOpKind, CallArg, CompareOpKind, Expr as Parsed, Stmt, UnaryOpKind};
use minijinja::value::ValueKind;

use super::functions::{Filter, Function, Method, Test};
use super::{Result, Value, fails};

pub(super) enum Statement {
    Raw(String),
    Emit(Expression),
    For(Box<Loop>),
    If(Expression, Vec<Statement>, Vec<Statement>),
    /// `{% set name = ... %}`
    Set(Target, Expression),
    /// `{% set name %}...{% endset %}`
    Capture(String, Vec<Statement>),
    With(Vec<(Target, Expression)>, Vec<Statement>),
    Break,
    Continue,
}

pub(super) struct Loop {
    pub(super) target: Target,
    pub(super) items: Expression,
    pub(super) condition: Option<Expression>,
    pub(super) body: Vec<Statement>,
    pub(super) otherwise: Vec<Statement>,
}

/// Target of an assignment.
pub(super) enum Target {
    Name(String),
    /// `a, b`
    Names(Vec<String>),
    /// `namespace.field`
    Field(Expression, String),
}

pub(super) type Arguments = (Vec<Expression>, Vec<(String, Expression)>);

pub(super) enum Expression {
    Constant(Value),
    Name(String),
    List(Vec<Expression>),
    Map(Vec<(Expression, Expression)>),
    Not(Box<Expression>),
    Negative(Box<Expression>),
    And(Box<[Expression; 2]>),
    Or(Box<[Expression; 2]>),
    Arithmetic(BinOpKind, Box<[Expression; 2]>),
    /// `a < b <= c`
    Compare(Box<Expression>, Vec<(CompareOpKind, Expression)>),
    /// Test, then, else.
    Choice(Box<(Expression, Expression, Option<Expression>)>),
    Attribute(Box<Expression>, String),
    Item(Box<[Expression; 2]>),
    Slice(Box<Expression>, Box<[Option<Expression>; 3]>),
    Filter(Filter, Box<Expression>, Arguments),
    Test(Test, Box<Expression>, Vec<Expression>),
    Function(Function, Arguments),
    Method(Method, Box<Expression>, Arguments),
}

fn unsupported<T>(what: &str) -> Result<T> {
    fails(format!(
        "it uses {what}, which is outside the supported subset of Jinja"
    ))
}

pub(super) fn statements(parsed: &[Stmt<'_>]) -> Result<Vec<Statement>> {
    parsed.iter().map(statement).collect()
}

fn statement(parsed: &Stmt<'_>) -> Result<Statement> {
    Ok(match parsed {
        Stmt::EmitRaw(raw) => Statement::Raw(raw.raw.to_owned()),
        Stmt::EmitExpr(emit) => Statement::Emit(expression(&emit.expr)?),
        Stmt::ForLoop(parsed) if parsed.recursive => return unsupported("a recursive loop"),
        Stmt::ForLoop(parsed) => Statement::For(Box::new(Loop {
            target: target(&parsed.target)?,
            items: expression(&parsed.iter)?,
            condition: parsed.filter_expr.as_ref().map(expression).transpose()?,
            body: statements(&parsed.body)?,
            otherwise: statements(&parsed.else_body)?,
        })),
        Stmt::IfCond(parsed) => Statement::If(
            expression(&parsed.expr)?,
            statements(&parsed.true_body)?,
            statements(&parsed.false_body)?,
        ),
        Stmt::Set(parsed) => Statement::Set(target(&parsed.target)?, expression(&parsed.expr)?),
        Stmt::SetBlock(parsed) => match (&parsed.target, &parsed.filter) {
            (Parsed::Var(name), None) => Statement::Capture(name.id.to_owned(), statements(&parsed.body)?),
            _ => return unsupported("a filtered {% set %} block"),
        },
        Stmt::WithBlock(parsed) => {
            let assignments = parsed.assignments.iter();
            let assignments = assignments.map(|(name, value)| Ok((target(name)?, expression(value)?)));
            Statement::With(assignments.collect::<Result<_>>()?, statements(&parsed.body)?)
        }
        Stmt::Break(_) => Statement::Break,
        Stmt::Continue(_) => Statement::Continue,
        Stmt::Template(_) => return unsupported("a template inside a template"),
        Stmt::AutoEscape(_) => return unsupported("{% autoescape %}"),
        Stmt::FilterBlock(_) => return unsupported("{% filter %}"),
        Stmt::Block(_) => return unsupported("{% block %}"),
        Stmt::Import(_) | Stmt::FromImport(_) => return unsupported("{% import %}"),
        Stmt::Extends(_) => return unsupported("{% extends %}"),
        Stmt::Include(_) => return unsupported("{% include %}"),
        Stmt::Macro(_) => return unsupported("{% macro %}"),
        Stmt::CallBlock(_) => return unsupported("{% call %}"),
        Stmt::Do(_) => return unsupported("{% do %}"),
    })
}

fn target(parsed: &Parsed<'_>) -> Result<Target> {
    let names = |items: &[Parsed<'_>]| {
        let names = items.iter().map(|item| match item {
            Parsed::Var(name) => Ok(name.id.to_owned()),
            _ => unsupported("a nested assignment"),
        });
        names.collect::<Result<_>>().map(Target::Names)
    };
    match parsed {
        Parsed::Var(name) => Ok(Target::Name(name.id.to_owned())),
        Parsed::GetAttr(field) => Ok(Target::Field(expression(&field.expr)?, field.name.to_owned())),
        Parsed::List(list) => names(&list.items),
        Parsed::Tuple(tuple) => names(&tuple.items),
        _ => unsupported("an assignment to something other than a name"),
    }
}

fn pair(left: &Parsed<'_>, right: &Parsed<'_>) -> Result<Box<[Expression; 2]>> {
    Ok(Box::new([expression(left)?, expression(right)?]))
}

fn boxed(parsed: &Parsed<'_>) -> Result<Box<Expression>> {
    expression(parsed).map(Box::new)
}

fn expressions(parsed: &[Parsed<'_>]) -> Result<Vec<Expression>> {
    parsed.iter().map(expression).collect()
}

fn expression(parsed: &Parsed<'_>) -> Result<Expression> {
    Ok(match parsed {
        Parsed::Var(name) => Expression::Name(name.id.to_owned()),
        Parsed::Const(constant) => Expression::Constant(constant_value(&constant.value)?),
        Parsed::List(list) => Expression::List(expressions(&list.items)?),
        Parsed::Tuple(tuple) => Expression::List(expressions(&tuple.items)?),
        Parsed::Map(map) => {
            let entries = map.keys.iter().zip(&map.values);
            let entries = entries.map(|(key, value)| Ok((expression(key)?, expression(value)?)));
            Expression::Map(entries.collect::<Result<_>>()?)
        }
        Parsed::UnaryOp(operation) => match operation.op {
            UnaryOpKind::Not => Expression::Not(boxed(&operation.expr)?),
            UnaryOpKind::Neg => Expression::Negative(boxed(&operation.expr)?),
        },
        Parsed::BinOp(operation) => binary(operation)?,
        Parsed::Compare(compare) => {
            let operations = compare.ops.iter();
            let operations = operations.map(|next| Ok((next.op, expression(&next.expr)?)));
            Expression::Compare(boxed(&compare.expr)?, operations.collect::<Result<_>>()?)
        }
        Parsed::IfExpr(choice) => Expression::Choice(Box::new((
            expression(&choice.test_expr)?,
            expression(&choice.true_expr)?,
            choice.false_expr.as_ref().map(expression).transpose()?,
        ))),
        Parsed::GetAttr(attribute) => {
            Expression::Attribute(boxed(&attribute.expr)?, attribute.name.to_owned())
        }
        Parsed::GetItem(item) => Expression::Item(pair(&item.expr, &item.subscript_expr)?),
        Parsed::Slice(slice) => {
            let bound = |bound: &Option<Parsed<'_>>| bound.as_ref().map(expression).transpose();
            let bounds = [bound(&slice.start)?, bound(&slice.stop)?, bound(&slice.step)?];
            Expression::Slice(boxed(&slice.expr)?, Box::new(bounds))
        }
        Parsed::Filter(filter) => {
            let Some(known) = Filter::named(filter.name) else {
                return unsupported(&format!("the filter `{}`", filter.name));
            };
            let Some(value) = &filter.expr else {
                return unsupported("a filter without a value");
            };
            Expression::Filter(known, boxed(value)?, arguments(&filter.args)?)
        }
        Parsed::Test(test) => {
            let Some(known) = Test::named(test.name) else {
                return unsupported(&format!("the test `{}`", test.name));
            };
            let (positional, named) = arguments(&test.args)?;
            if !named.is_empty() {
                return unsupported("a test with named arguments");
            }
            Expression::Test(known, boxed(&test.expr)?, positional)
        }
        Parsed::Call(call) => called(call)?,
    })
}

fn binary(operation: &ast::BinOp<'_>) -> Result<Expression> {
    let both = pair(&operation.left, &operation.right)?;
    let compared = |kind, both: Box<[Expression; 2]>| {
        let [left, right] = *both;
        Expression::Compare(Box::new(left), vec![(kind, right)])
    };
    Ok(match operation.op {
        BinOpKind::ScAnd => Expression::And(both),
        BinOpKind::ScOr => Expression::Or(both),
        BinOpKind::Eq => compared(CompareOpKind::Eq, both),
        BinOpKind::Ne => compared(CompareOpKind::Ne, both),
        BinOpKind::Lt => compared(CompareOpKind::Lt, both),
        BinOpKind::Lte => compared(CompareOpKind::Lte, both),
        BinOpKind::Gt => compared(CompareOpKind::Gt, both),
        BinOpKind::Gte => compared(CompareOpKind::Gte, both),
        BinOpKind::In => compared(CompareOpKind::In, both),
        BinOpKind::Pow => return unsupported("the operator `**`"),
        kind => Expression::Arithmetic(kind, both),
    })
}

fn called(call: &ast::Call<'_>) -> Result<Expression> {
    let arguments = arguments(&call.args)?;
    match &call.expr {
        Parsed::Var(name) => match Function::named(name.id) {
            Some(function) => Ok(Expression::Function(function, arguments)),
            None => unsupported(&format!("the function `{}`", name.id)),
        },
        Parsed::GetAttr(attribute) => match Method::named(attribute.name) {
            Some(method) => Ok(Expression::Method(method, boxed(&attribute.expr)?, arguments)),
            None => unsupported(&format!("the method `{}`", attribute.name)),
        },
        _ => unsupported("a call of an unnamed value"),
    }
}

fn arguments(parsed: &[CallArg<'_>]) -> Result<Arguments> {
    let (mut positional, mut named) = (Vec::new(), Vec::new());
    for argument in parsed {
        match argument {
            CallArg::Pos(value) => positional.push(expression(value)?),
            CallArg::Kwarg(name, value) => named.push(((*name).to_owned(), expression(value)?)),
            CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
                return unsupported("unpacking of arguments with `*`");
            }
        }
    }
    Ok((positional, named))
}

fn constant_value(value: &minijinja::Value) -> Result<Value> {
    Ok(match value.kind() {
        ValueKind::Undefined => Value::Undefined,
        ValueKind::None => Value::None,
        ValueKind::Bool => Value::Bool(value.is_true()),
        ValueKind::Number if value.is_integer() => match i64::try_from(value.clone()) {
            Ok(number) => Value::Int(number),
            Err(_) => return fails("a whole number does not fit 64 bits"),
        },
        ValueKind::Number => f64::try_from(value.clone()).map_or(Value::Undefined, Value::Float),
        _ => match value.as_str() {
            Some(text) => text.into(),
            None => return unsupported("a constant of an unknown kind"),
        },
    })
}
