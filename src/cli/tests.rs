use clap::CommandFactory;

use super::output::{NextAction, Param};
use super::render::Human;
use super::*;

fn output(mode: Mode) -> Output {
    Output { mode, is_json_asked: mode == Mode::Json, is_quiet: false, is_colored: false, is_verbose: false }
}

fn depth() -> NextAction {
    NextAction::new("queue depth", "Check the backlog")
}

#[test]
fn the_definition_of_the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn an_envelope_has_the_fields_of_the_contract_in_order() {
    let inspect = NextAction::new("queue inspect <stream-id>", "Look at the accepted event")
        .param("stream-id", Param::new().value("1772981290101-0").required());
    let report = Report::new(json!({ "n": 1 }), Human::new()).next(inspect).next(depth());
    let text = output(Mode::Json).render("joelclaw queue emit", &Ok(report)).stdout;
    let expected = concat!(
        r#"{"ok":true,"command":"joelclaw queue emit","result":{"n":1},"next_actions":["#,
        r#"{"command":"joelclaw queue inspect <stream-id>","description":"Look at the accepted event","#,
        r#""params":{"stream-id":{"value":"1772981290101-0","required":true}}},"#,
        r#"{"command":"joelclaw queue depth","description":"Check the backlog"}]}"#,
        "\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn a_failure_says_what_to_do_and_a_bad_finding_keeps_its_result() {
    let failure = Failure::new(" not-an object ", Exit::Usage, "an array", "");
    let rendered = output(Mode::Json).render("joelclaw queue emit", &Err(failure));
    let expected = concat!(
        r#"{"ok":false,"command":"joelclaw queue emit","result":null,"#,
        r#""error":{"message":"an array","code":"NOT_AN_OBJECT"},"fix":"Inspect the error and retry.","next_actions":[]}"#,
        "\n"
    );
    assert_eq!((rendered.stdout.as_str(), rendered.exit), (expected, Exit::Usage));

    let report = Report::new(json!({ "status": "down" }), Human::new()).unhealthy(Exit::Unhealthy);
    let rendered = output(Mode::Json).render("joelclaw jobs status", &Ok(report));
    let envelope: Value = serde_json::from_str(&rendered.stdout).unwrap();
    assert_eq!((&envelope["ok"], &envelope["result"]["status"]), (&json!(false), &json!("down")));
    assert!(envelope.get("error").is_none());
    assert_eq!(rendered.exit, Exit::Unhealthy);
}

#[test]
fn next_actions_are_few_and_a_destructive_one_never_leads() {
    let mut report = Report::new(json!({}), Human::new()).next(NextAction::new("queue ack x", "Drop it").destructive());
    for _ in 0..10 {
        report = report.next(depth());
    }
    let envelope = output::envelope("joelclaw x", &Ok(report));
    let actions = envelope["next_actions"].as_array().unwrap();
    assert_eq!((actions.len(), actions[0].get("destructive")), (8, None));

    let only = Report::new(json!({}), Human::new()).next(NextAction::new("queue ack x", "Drop it").destructive());
    assert_eq!(output::envelope("joelclaw x", &Ok(only))["next_actions"], json!([]));
    let foreign = NextAction::external("kubectl get pods", "Look at the pods");
    let report = Report::new(json!({}), Human::new()).next(foreign);
    let action = &output::envelope("joelclaw x", &Ok(report))["next_actions"][0];
    assert_eq!((&action["command"], &action["external"]), (&json!("kubectl get pods"), &json!(true)));
}

#[test]
fn a_template_is_filled_with_what_is_known() {
    let list = |param| NextAction::new("queue list [--limit <n>]", "List").param("n", param).fill();
    assert_eq!(list(Param::new().value(20).default_value(10)), "joelclaw queue list --limit 20");
    assert_eq!(list(Param::new().value(10).default_value(10)), "joelclaw queue list");
    assert_eq!(list(Param::new().default_value(10)), "joelclaw queue list");
    let pause = NextAction::new("queue pause <family> --ttl 10m --reason <text>", "Retry")
        .param("family", Param::new().value("a b's").required())
        .param("text", Param::new().required());
    assert_eq!(pause.fill(), r"joelclaw queue pause 'a b'\''s' --ttl 10m --reason <text>");
    let both = NextAction::new("x [--a <a>] y [--b <b>]", "d").param("b", Param::new().value(1));
    assert_eq!(both.fill(), "joelclaw x y --b 1");
}

#[test]
fn people_see_the_text_and_two_next_commands() {
    let report =
        Report::new(json!({ "n": 1 }), Human::new().text("one event")).next(depth()).next(depth()).next(depth());
    let text = output(Mode::Human).render("joelclaw queue emit", &Ok(report)).stdout;
    let hint = "  joelclaw queue depth  # Check the backlog\n";
    assert_eq!(text, format!("one event\n\n{hint}{hint}"));
    let failure = Failure::new("QUEUE_FULL", Exit::Refused, "Redis is full", "joelclaw queue depth");
    let rendered = output(Mode::Human).render("joelclaw queue emit", &Err(failure));
    assert_eq!(rendered.stdout, "");
    assert_eq!(rendered.stderr, "error: Redis is full (QUEUE_FULL)\nfix: joelclaw queue depth\n");
}

#[test]
fn any_diagnosed_error_becomes_a_failure() {
    let error = crate::config::Error::EventKeyMissing { url: "http://h".into() };
    let rendered = output(Mode::Json).render("joelclaw drainer", &Err(error.into()));
    let envelope: Value = serde_json::from_str(&rendered.stdout).unwrap();
    assert_eq!((&envelope["error"]["code"], rendered.exit), (&json!("EVENT_KEY_MISSING"), Exit::Config));
}

#[test]
fn a_panic_is_an_internal_error() {
    let Ending::Outcome(Err(failure)) = guard(|| panic!("out of cheese")) else { panic!("no failure") };
    assert_eq!(failure.exit(), Exit::Internal);
    let envelope = output::envelope("joelclaw x", &Err(failure));
    assert_eq!(envelope["error"]["code"], "INTERNAL_ERROR");
    assert!(envelope["error"]["message"].as_str().unwrap().starts_with("internal fault: out of cheese at "));
}

#[test]
fn passwords_in_repeated_arguments_are_removed() {
    assert_eq!(output::redact("argument 'redis://u:p@h:1' found\n"), "argument 'redis://h:1' found\n");
}
