use serde_json::{Value, json};

use super::*;

fn event() -> Value {
    json!({"name": "a/b", "ts": 1_700_000_000_000_i64, "data": {
        "n": 5, "f": 2.5, "s": "text", "empty": "", "zero": 0, "yes": true, "nil": null, "list": [1, 2, 3],
        "map": {"k": "v"}, "big": 9_007_199_254_740_993_i64, "json": "{\"x\":1}", "b64": "aGk=",
        "items": [{"id": 1, "ok": true}, {"id": 2, "ok": false}],
    }})
}

fn value(text: &str) -> Result<Value, EvalError> {
    let (event, arriving) = (event(), json!({"name": "c/d", "data": {"n": 5.0, "s": "text"}}));
    let scope = Scope { event: Some(&event), async_event: Some(&arriving), now_ms: 1_000_000 };
    Expr::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).evaluate(&scope)
}

fn holds(text: &str) -> bool {
    match value(text) {
        Ok(Value::Bool(holds)) => holds,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn missing_fields_follow_the_table() {
    for text in [
        "event.data.no == null",
        "!(event.data.no != null)",
        "!(event.data.no == 1)",
        "!(event.data.no == event.data.nope)",
        "event.data.no != 1",
        "event.data.no < 1",
        "event.data.no <= 1",
        "!(event.data.no > 1)",
        "!(event.data.no >= 1)",
        "1 > event.data.no",
        "1 >= event.data.no",
        "!(1 < event.data.no)",
        "!(1 <= event.data.no)",
        "event.data.no.deep.er == null",
        "event.data.no + 'x' == 'x'",
        "'x' + event.data.no == 'x'",
        "(event.data.no + event.data.nope) == false",
        "size(event.data.no) == 0",
        "lowercase(event.data.no) == false",
        "event.data.no.contains('x') == false",
        "!event.data.no",
    ] {
        assert!(holds(text), "{text}");
    }
}

#[test]
fn null_and_mixed_types_follow_the_table() {
    for text in [
        "!(event.data.nil == 1)",
        "event.data.nil != 1",
        "event.data.nil == null",
        "event.data.nil < 1",
        "event.data.nil <= 0",
        "event.data.nil < 'a'",
        "'a' + 1 == 'a1'",
        "1 + 'a' == '1a'",
        "'a' + 1.0 == 'a1'",
        "1 == 1.0",
        "event.data.n == async.data.n",
        "event.data.n > 4.5",
        "event.data.f < 3",
        "!('5' == 5)",
        "event.data.big == 9007199254740993",
        "event.data.big != 9007199254740992",
        "event.data.s && event.data.n",
        "!(event.data.empty || event.data.zero || event.data.nil)",
        "event.data.list && event.data.map ? true : false",
    ] {
        assert!(holds(text), "{text}");
    }
    assert_eq!(value("event.data.n / 2"), Ok(json!(2.5)));
    assert!(value("event.data.s < 1").is_err());
    assert!(value("1 / 0").is_err());
    assert!(holds("event.data.s < 1 || true"));
}

#[test]
fn functions_and_macros() {
    for text in [
        "has(event.data.n) && !has(event.data.no)",
        "size(event.data.list) == 3 && size('äö') == 2 && event.data.list.size() == 3",
        "event.data.list.exists(x, x > 2)",
        "event.data.list.all(x, x > 0)",
        "event.data.list.exists_one(x, x == 2)",
        "event.data.list.filter(x, x > 1) == [2, 3]",
        "event.data.list.map(x, x * 2) == [2, 4, 6]",
        "event.data.items.exists(i, i.id == 2 && !i.ok)",
        "!event.data.no.exists(x, true) && !event.data.no.all(x, true)",
        "event.data.s.startsWith('te') && event.data.s.endsWith('xt') && event.data.s.matches('^t.*t$')",
        "'TEXT'.lowerAscii() == lowercase('Text') && uppercase('x') == 'X'",
        "int('7') == 7 && double('1.5') == 1.5 && string(5) == '5' && bool('true') && uint(3) == 3",
        "b64decode(event.data.b64) == 'hi' && json_parse(event.data.json).x == 1",
        "now() == 1000000 && now_plus('5m') == 1300000 && now_minus('1s') == 999000",
        "date('2024-01-02') == date('2024-01-02T00:00:00Z') && timestamp('2024-01-02T00:00:00Z') > date(0)",
        "duration('1h') == 3600000",
        "'k' in event.data.map && 2 in event.data.list && !(9 in event.data.list)",
        "event.data['map']['k'] == \"v\" && event.data.list[0] == 1",
        "type(1) == 'int' && type('') == 'string'",
        "{'a': 1}.a == 1",
    ] {
        assert!(holds(text), "{text}");
    }
}

#[test]
fn every_expression_of_the_catalogue_is_understood() {
    for text in [
        "event.data.chainId",
        "event.name",
        "event.data.from.phone_number",
        "\"global\"",
        "\"slack-backfill\"",
        "event.data.resourceId ? event.data.resourceId : (event.data.contentType == \"post\" ? \"post:\" + event.data.contentSlug : event.data.contentType + \":\" + event.data.contentSlug)",
        "((event.data.nasPath ? event.data.nasPath : (event.data.filePath ? event.data.filePath : \"\")) + \"::\" + event.data.idempotencyKey)",
        "event.data.priority == 'query' ? 0 : event.data.priority == 'ingest-realtime' ? 10 : 100",
    ] {
        Expr::compile(text, Roots::Event).unwrap_or_else(|error| panic!("{text}: {error}"));
        value(text).unwrap();
    }
    for text in [
        "event.data.loopId == async.data.loopId",
        "event.data.isHuman == true && async.data.isHuman == true",
        "async.data.actorId == \"it's \\\"quoted\\\"\"",
    ] {
        Expr::compile(text, Roots::EventAndAsync).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(Expr::compile(text, Roots::Event).is_err(), "{text}");
    }
    let scope_key = |data: Value| {
        let event = json!({ "data": data });
        let scope = Scope { event: Some(&event), async_event: None, now_ms: 0 };
        Expr::parse("event.data.resourceId ? event.data.resourceId : \"post:\" + event.data.slug").unwrap().key(&scope)
    };
    assert_eq!(scope_key(json!({"resourceId": "r"})).unwrap(), "r");
    assert_eq!(scope_key(json!({"slug": "s"})).unwrap(), "post:s");
    assert_eq!(scope_key(json!({"resourceId": 7.0})).unwrap(), "7");
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let error = Expr::parse("event.data.x ==").unwrap_err();
    assert!(error.position.is_some(), "{error}");
    assert!(Expr::parse("granola-mcp").unwrap().check(Roots::Event).unwrap_err().message.contains("granola"));
    assert!(Expr::compile("nope(event.data.x)", Roots::Event).unwrap_err().message.contains("nope"));
    assert!(Expr::parse("").is_err());
    assert!(Expr::parse(&"x".repeat(MAX_BYTES + 1)).is_err());
    assert!(Expr::parse(&format!("{}1{}", "(".repeat(2000), ")".repeat(2000))).is_err());
    // Repeated signs are folded by the parser, however many.
    assert!(Expr::parse(&format!("{}true", "!".repeat(3000))).is_ok());
    assert!(Expr::compile("event.data.list.exists(x, x > y)", Roots::Event).is_err());
    assert!(
        Expr::compile("event.data.list.exists(x, x > 1) && event.data.list.map(x, x + 1) == []", Roots::Event).is_ok()
    );
}

#[test]
fn only_a_boolean_matches() {
    let event = event();
    let scope = Scope { event: Some(&event), async_event: None, now_ms: 0 };
    let matches = |text: &str| Expr::parse(text).unwrap().matches(&scope);
    assert_eq!(matches("event.data.yes"), Ok(true));
    assert_eq!(matches("event.data.no"), Ok(false));
    assert!(matches("event.data.n").is_err());
    assert!(matches("event.data.s").is_err());
}

#[test]
fn extreme_numbers_and_texts_are_errors_at_most() {
    for text in
        ["-9223372036854775808 / -1", "-9223372036854775808 % -1", "9223372036854775807 + 1", "now_plus('100000000w')"]
    {
        let _ = value(text);
    }
    let doubling = format!("[event.data.s]{}", ".map(a, a + a)".repeat(40));
    assert!(value(&doubling).is_err());
    let chain = vec!["1"; 2000].join("<");
    assert!(Expr::parse(&chain).is_err(), "too deep, but no crash");
}

#[test]
fn evaluation_ends() {
    let event = json!({"data": {"list": (0..1000).collect::<Vec<_>>()}});
    let scope = Scope { event: Some(&event), async_event: None, now_ms: 0 };
    let expr =
        Expr::parse("event.data.list.all(x, event.data.list.all(y, event.data.list.all(z, x + y + z >= 0)))").unwrap();
    assert!(expr.matches(&scope).unwrap_err().to_string().contains("steps"));
}

#[test]
fn a_wait_keeps_only_what_it_looks_at() {
    let expr = Expr::parse("event.data.map.k == async.data.k && event.data['n'] > 1 && event.data.no == null").unwrap();
    assert_eq!(expr.event_part(&event()), json!({"data": {"map": {"k": "v"}, "n": 5}}));
    let whole = Expr::parse("size(event) > 0").unwrap();
    assert_eq!(whole.event_part(&event()), event());
}

proptest::proptest! {
    #[test]
    fn no_text_and_no_payload_panics(text in "[a-z0-9.()!&|=<>+'\" \\[\\]?:,{}-]{0,60}", n in -5i64..5, s in ".{0,5}") {
        let event = json!({"data": {"n": n, "s": s, "l": [n, s]}});
        let scope = Scope { event: Some(&event), async_event: None, now_ms: 0 };
        if let Ok(expr) = Expr::parse(&text) {
            let _ = expr.evaluate(&scope);
            let _ = expr.check(Roots::EventAndAsync);
        }
    }
}

#[test]
fn a_field_that_must_equal_a_known_value_is_found() {
    let event = json!({"data": {"id": 7, "user": "a", "list": [1]}});
    let sought = |text: &str| Expr::parse(text).unwrap().sought(&event);
    let path =
        |path: &[&str], value: Value| Some((path.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), value));
    for (text, expected) in [
        ("event.data.id == async.data.id", path(&["data", "id"], json!(7))),
        ("async.data.id == event.data.id", path(&["data", "id"], json!(7))),
        ("async.data['id'] == \"x\"", path(&["data", "id"], json!("x"))),
        ("async.data.n > 3 && async.data.user == event.data.user", path(&["data", "user"], json!("a"))),
        ("event.data.list == async.data.list && async.data.ok == true", path(&["data", "ok"], json!(true))),
        ("event.data.gone == async.data.id", None),
        ("async.data.id == 1 || async.data.id == 2", None),
        ("!(async.data.id == 1)", None),
        ("async.data.a == async.data.b", None),
        ("has(async.data.id) == true", None),
        ("async.data.id != 1", None),
    ] {
        assert_eq!(sought(text), expected, "{text}");
    }
}
