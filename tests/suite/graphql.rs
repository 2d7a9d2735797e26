//! What operators' tools ask by GraphQL, word for word, and what they are answered.

use crate::graphql_support::{LARGE, LONG, Shop, hash, minutes_ago, ms};
use crate::support::eventually;
use serde_json::{Value, json};

const TRACE: &str = "name status attempts duration isRoot startedAt endedAt stepOp stepID outputID";

async fn trace(shop: &Shop, run: &Value) -> Value {
    let query =
        format!("{{ runTrace(runID:{run}) {{ {TRACE} childrenSpans {{ {TRACE} childrenSpans {{ {TRACE} }} }} }} }}");
    shop.query(&query).await["runTrace"].clone()
}

async fn output(shop: &Shop, span: &Value) -> Value {
    let query = format!(
        "{{ runTraceSpanOutputByID(outputID:{}) {{ data error {{ message name stack }} }} }}",
        span["outputID"]
    );
    shop.query(&query).await["runTraceSpanOutputByID"].clone()
}

/// Name, status and attempts of each child.
fn children(span: &Value) -> Vec<(String, String, Option<u64>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let children = span["childrenSpans"].as_array().unwrap_or_else(|| panic!("{span}"));
    children.iter().map(|child| (text(&child["name"]), text(&child["status"]), child["attempts"].as_u64())).collect()
}

fn child(name: &str, status: &str, attempts: impl Into<Option<u64>>) -> (String, String, Option<u64>) {
    (name.to_owned(), status.to_owned(), attempts.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_and_apps_are_shown_as_they_registered_and_a_removed_app_registers_anew() {
    let shop = Shop::start().await;
    let functions = shop.query("{ functions { id slug name triggers { type value } } }").await;
    let functions = functions["functions"].as_array().unwrap();
    let order = functions.iter().find(|function| function["slug"] == "shop-order").unwrap();
    assert_eq!(order["name"], "Ship an order");
    assert_eq!(order["triggers"], json!([{"type": "EVENT", "value": "shop/order.placed"}]));
    let nightly = functions.iter().find(|function| function["slug"] == "shop-nightly").unwrap();
    assert_eq!(nightly["triggers"], json!([{"type": "CRON", "value": "0 3 * * *"}]));
    let apps = shop.query("{ apps { id name url functionCount functions { name slug } } }").await["apps"].clone();
    assert_eq!((&apps[0]["name"], &apps[0]["url"]), (&json!("shop"), &json!(shop.app.url())));
    assert_eq!(apps[0]["functionCount"], 5);
    assert_eq!(apps[0]["functions"][0], json!({"name": "Ship an order", "slug": "shop-order"}));
    let more = "{ apps { externalID sdkLanguage sdkVersion framework checksum error connected method autodiscovered } \
                functionBySlug(query:{functionSlug:\"shop-order\"}) { id app { id } } }";
    let more = shop.query(more).await;
    assert_eq!(more["functionBySlug"], json!({"id": order["id"], "app": {"id": apps[0]["id"]}}));
    let app = &more["apps"][0];
    assert_eq!(
        (&app["sdkLanguage"], &app["sdkVersion"], &app["method"]),
        (&json!("js"), &json!("3.54.2"), &json!("SERVE"))
    );
    assert_eq!((&app["connected"], &app["error"], &app["framework"]), (&json!(true), &Value::Null, &json!("express")));

    let deleted = shop.query(&format!("mutation {{ deleteApp(id:{}) }}", apps[0]["id"])).await;
    assert_eq!(deleted["deleteApp"], apps[0]["id"]);
    assert_eq!(shop.query("{ apps { id } functions { id } }").await, json!({"apps": [], "functions": []}));
    let (code, _) = shop.refused(&format!("mutation {{ deleteApp(id:{}) }}", apps[0]["id"])).await;
    assert_eq!(code, "NOT_FOUND");
    assert_eq!(shop.register().await["modified"], true);
    assert_eq!(
        shop.query("{ apps { id functionCount } }").await["apps"],
        json!([{"id": apps[0]["id"], "functionCount": 5}])
    );

    assert_eq!(shop.query("mutation { deleteAppByName(name:\"shop\") }").await["deleteAppByName"], true);
    let create = "mutation Create($input: CreateAppInput!) { createApp(input:$input) { id name functions { slug } } }";
    let created = shop.query_with(create, json!({"input": {"url": shop.app.url()}})).await;
    assert_eq!(created["createApp"]["id"], apps[0]["id"]);
    assert_eq!(created["createApp"]["functions"].as_array().unwrap().len(), 5);
    let (code, message) =
        shop.refused("mutation { createApp(input:{url:\"http://127.0.0.1:9/api/inngest\"}) { id } }").await;
    assert_eq!(code, "APP_NOT_SYNCED");
    assert!(message.contains("can't be reached"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_run_is_told_step_by_step() {
    let shop = Shop::start().await;
    let event = shop.send("shop/order.placed", json!({"n": 1})).await;
    let run = shop.run_of(&event, "COMPLETED").await;
    let id = &run["id"];
    let query = format!("{{ run(runID:{id}) {{ id status functionID startedAt endedAt output traceID }} }}");
    let shown = shop.query(&query).await["run"].clone();
    assert_eq!((&shown["status"], &shown["output"]), (&json!("COMPLETED"), &json!(r#"{"total":42}"#)));
    assert_eq!((&shown["functionID"], &shown["startedAt"]), (&run["functionID"], &run["startedAt"]));
    assert_eq!(shown["endedAt"], run["finishedAt"]);
    assert_eq!(shown["traceID"].as_str().unwrap().len(), 32);
    assert!(ms(&shown["endedAt"]) - ms(&shown["startedAt"]) >= 2_000, "{shown}");

    let trigger = shop.query(&format!("{{ runTrigger(runID:{id}) {{ eventName IDs timestamp }} }}")).await;
    let trigger = &trigger["runTrigger"];
    assert_eq!((&trigger["eventName"], &trigger["IDs"]), (&json!("shop/order.placed"), &json!([event])));
    assert!(ms(&trigger["timestamp"]) <= ms(&shown["startedAt"]));

    let root = trace(&shop, id).await;
    assert_eq!((&root["name"], &root["isRoot"], &root["status"]), (&json!("Run"), &json!(true), &json!("COMPLETED")));
    assert_eq!((&root["startedAt"], &root["endedAt"]), (&shown["startedAt"], &shown["endedAt"]));
    assert_eq!(root["duration"], ms(&shown["endedAt"]) - ms(&shown["startedAt"]));
    let expected = [
        child("The reserve", "COMPLETED", 1),
        child("The rest", "COMPLETED", None),
        child("The charge", "COMPLETED", 2),
        child("Finalization", "COMPLETED", 1),
    ];
    assert_eq!(children(&root), expected);
    let steps = root["childrenSpans"].as_array().unwrap();
    assert_eq!((&steps[0]["stepOp"], &steps[0]["stepID"]), (&json!("RUN"), &json!(hash("reserve"))));
    assert_eq!((&steps[1]["stepOp"], &steps[3]["stepOp"]), (&json!("SLEEP"), &Value::Null));
    let slept = steps[1]["duration"].as_i64().unwrap();
    assert!((1_000..10_000).contains(&slept), "{slept}");
    assert_eq!(children(&steps[2]), [child("Attempt 0", "FAILED", None), child("Attempt 1", "COMPLETED", None)]);
    for (earlier, later) in steps.iter().zip(&steps[1..]) {
        assert!(ms(&earlier["endedAt"]) <= ms(&later["startedAt"]), "{earlier} {later}");
    }

    assert_eq!(output(&shop, &root).await, json!({"data": r#"{"total":42}"#, "error": null}));
    assert_eq!(output(&shop, &steps[0]).await["data"], json!(format!(r#"{{"units":{LARGE}}}"#)));
    assert_eq!(output(&shop, &steps[1]).await, json!({"data": "null", "error": null}));
    assert_eq!(output(&shop, &steps[2]).await, json!({"data": "\"paid\"", "error": null}));
    let refused = output(&shop, &steps[2]["childrenSpans"][0]).await;
    assert_eq!((&refused["data"], &refused["error"]["name"]), (&Value::Null, &json!("OutOfStock")));
    assert_eq!(refused["error"]["message"], "the till is closed");

    let known = shop
        .query(&format!(
            "{{ event(query:{{eventId:\"{event}\"}}) {{ id name createdAt raw pendingRuns totalRuns \
             functionRuns {{ id status functionID startedAt finishedAt output }} }} }}"
        ))
        .await["event"]
        .clone();
    assert_eq!((&known["id"], &known["name"]), (&json!(event), &json!("shop/order.placed")));
    assert_eq!((&known["pendingRuns"], &known["totalRuns"]), (&json!(0), &json!(1)));
    assert_eq!(known["functionRuns"][0]["output"], r#"{"total":42}"#);
    let raw: Value = serde_json::from_str(known["raw"].as_str().unwrap()).unwrap();
    assert_eq!((&raw["data"], &raw["id"]), (&json!({"n": 1}), &json!(event)));
    assert!(ms(&known["createdAt"]) <= ms(&shown["startedAt"]));
    let from = minutes_ago(5);
    let list = |internal: bool| {
        format!(
            "{{ eventsV2(first:100, filter:{{from:\"{from}\", includeInternalEvents:{internal}}}) \
             {{ edges {{ node {{ id name occurredAt raw }} }} }} }}"
        )
    };
    let events = shop.query(&list(false)).await["eventsV2"]["edges"].clone();
    assert_eq!(events.as_array().unwrap().len(), 1, "{events}");
    assert_eq!((&events[0]["node"]["id"], &events[0]["node"]["raw"]), (&json!(event), &known["raw"]));
    ms(&events[0]["node"]["occurredAt"]);
    let with_internal = shop.query(&list(true)).await["eventsV2"]["edges"].clone();
    assert_eq!(with_internal[0]["node"]["name"], "inngest/function.finished", "{with_internal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_run_says_so_in_its_root_and_why() {
    let shop = Shop::start().await;
    let event = shop.send("shop/broken", json!({"n": 1})).await;
    let run = shop.run_of(&event, "FAILED").await;
    let error: Value = serde_json::from_str(run["output"].as_str().unwrap()).unwrap();
    assert_eq!((&error["name"], &error["message"]), (&json!("OrderFailed"), &json!("no stock")));
    let query = format!(
        "{{ runs(filter:{{from:\"{}\", status:[FAILED]}}, orderBy:[{{field:STARTED_AT,direction:DESC}}], first:10) \
         {{ edges {{ node {{ id status functionID startedAt endedAt output }} }} }} }}",
        minutes_ago(5)
    );
    let listed = shop.query(&query).await["runs"]["edges"].clone();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    let listed = &listed[0]["node"];
    assert_eq!((&listed["id"], &listed["status"], &listed["output"]), (&run["id"], &json!("FAILED"), &run["output"]));
    assert_eq!(listed["endedAt"], run["finishedAt"]);
    let root = trace(&shop, &run["id"]).await;
    assert_eq!(root["status"], "FAILED");
    assert_eq!(children(&root), [child("The pick", "FAILED", 1), child("Finalization", "FAILED", 1)]);
    let picked = output(&shop, &root["childrenSpans"][0]).await;
    assert_eq!((&picked["data"], &picked["error"]["message"]), (&Value::Null, &json!("none left")));
    assert!(picked["error"]["stack"].as_str().unwrap().starts_with("OutOfStock"));
    for span in [&root, &root["childrenSpans"][1]] {
        assert_eq!(output(&shop, span).await["error"]["message"], "no stock");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_run_is_found_without_from_and_order_and_cancelled_once() {
    let shop = Shop::start().await;
    let event = shop.send("shop/waits", json!({"n": 1})).await;
    let run = shop.run_of(&event, "RUNNING").await;
    let id = run["id"].as_str().unwrap();
    let list = |functions: &Value| {
        format!(
            "{{ runs(first:50, filter:{{status:[RUNNING], functionIDs:[{functions}]}}) {{ edges {{ node {{ id endedAt output }} }} }} }}"
        )
    };
    let expected = json!([{"node": {"id": id, "endedAt": null, "output": null}}]);
    for functions in [&Value::from("shop-wait"), &run["functionID"]] {
        assert_eq!(shop.query(&list(functions)).await["runs"]["edges"], expected);
    }
    assert_eq!(shop.query(&list(&"shop-order".into())).await["runs"]["edges"], json!([]));
    assert_eq!(shop.query(&list(&"no-such".into())).await["runs"]["edges"], json!([]));
    let any = "{ runs(first:50, filter:{status:[RUNNING]}) { totalCount edges { node { id endedAt output } } } }";
    assert_eq!(shop.query(any).await["runs"], json!({"totalCount": 1, "edges": expected}));

    let root = eventually(LONG, || async {
        let root = trace(&shop, &run["id"]).await;
        if children(&root).is_empty() { Err(root) } else { Ok(root) }
    })
    .await;
    assert_eq!(
        (&root["status"], &root["outputID"], &root["duration"]),
        (&json!("RUNNING"), &Value::Null, &Value::Null)
    );
    assert_eq!(children(&root), [child("The payment", "WAITING", None)]);
    let info = "{ runTrace(runID:\"$\") { childrenSpans { stepInfo { \
                ... on WaitForEventStepInfo { eventName expression timeout timedOut foundEventID } } } } }";
    let info = shop.query(&info.replace('$', id)).await["runTrace"]["childrenSpans"][0]["stepInfo"].clone();
    assert_eq!((&info["eventName"], &info["expression"]), (&json!("shop/paid"), &json!("async.data.n == 1")));
    assert!(ms(&info["timeout"]) > chrono::Utc::now().timestamp_millis() + 3_000_000, "{info}");
    assert_eq!((&info["timedOut"], &info["foundEventID"]), (&Value::Null, &Value::Null));

    let cancel = "mutation CancelRun($runID: ULID!) { cancelRun(runID:$runID) { id status } }";
    let cancelled = shop.query_with(cancel, json!({"runID": id})).await;
    assert_eq!(cancelled["cancelRun"], json!({"id": id, "status": "CANCELLED"}));
    let again = shop.ask(&json!({"query": cancel, "variables": {"runID": id}, "operationName": "CancelRun"})).await;
    assert_eq!(again["errors"][0]["message"], "cannot cancel an ended run", "{again}");
    assert_eq!(again["errors"][0]["extensions"]["code"], "ENDED");
    let root = trace(&shop, &run["id"]).await;
    assert_eq!(
        (&root["status"], children(&root)),
        (&json!("CANCELLED"), vec![child("The payment", "CANCELLED", None)])
    );
    assert_eq!(output(&shop, &root).await["error"]["message"], "cancelled by API");
    assert_eq!(shop.query(any).await["runs"]["totalCount"], 0);

    let rerun = shop.query(&format!("mutation {{ rerun(runID:\"{id}\") }}")).await["rerun"].clone();
    assert_ne!(rerun, run["id"]);
    let (code, _) = shop.refused(&format!("mutation {{ rerun(runID:{rerun}, fromStep:{{stepID:\"x\"}}) }}")).await;
    assert_eq!(code, "NOT_IMPLEMENTED");
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_side_by_side_have_a_span_each() {
    let shop = Shop::start().await;
    let event = shop.send("shop/both", json!({})).await;
    let run = shop.run_of(&event, "COMPLETED").await;
    let root = trace(&shop, &run["id"]).await;
    let expected =
        [child("The left", "COMPLETED", 1), child("The right", "COMPLETED", 1), child("Finalization", "COMPLETED", 1)];
    assert_eq!(children(&root), expected);
    assert_eq!(output(&shop, &root["childrenSpans"][1]).await["data"], "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_is_invoked_by_its_slug_whatever_its_triggers() {
    let shop = Shop::start().await;
    let invoke = "mutation InvokeFunction($slug:String!,$data:Map){ invokeFunction(functionSlug:$slug, data:$data) }";
    let variables = json!({"slug": "shop-nightly", "data": {"n": LARGE}});
    assert_eq!(shop.query_with(invoke, variables).await["invokeFunction"], true);
    let query = "{ runs(first:1, filter:{functionIDs:[\"shop-nightly\"], status:[COMPLETED]}) \
                 { edges { node { output eventName function { slug name } app { name } } } } }";
    let node = eventually(LONG, || async {
        let edges = shop.query(query).await["runs"]["edges"].clone();
        edges.get(0).map(|edge| edge["node"].clone()).ok_or(edges)
    })
    .await;
    assert_eq!((&node["output"], &node["eventName"]), (&json!(LARGE.to_string()), &json!("inngest/function.invoked")));
    assert_eq!((&node["function"]["name"], &node["app"]["name"]), (&json!("Tidy up"), &json!("shop")));
    let unknown = shop.ask(&json!({"query": invoke, "variables": {"slug": "nobody"}})).await;
    assert_eq!(unknown["errors"][0]["message"], "could not find function with ID: nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_runs_and_events_show_each_once() {
    let shop = Shop::start().await;
    let mut events = Vec::new();
    for n in 0..7 {
        events.push(shop.send("shop/waits", json!({"n": n})).await);
    }
    for event in &events {
        shop.run_of(event, "RUNNING").await;
    }
    for (field, time, direction) in
        [("QUEUED_AT", "queuedAt", "DESC"), ("QUEUED_AT", "queuedAt", "ASC"), ("STARTED_AT", "startedAt", "DESC")]
    {
        let query = format!(
            "query Page($after:String) {{ runs(first:3, after:$after, filter:{{from:\"{}\", appIDs:[\"shop\"]}}, \
             orderBy:[{{field:{field},direction:{direction}}}]) \
             {{ totalCount pageInfo {{ hasNextPage endCursor }} edges {{ cursor node {{ triggerIDs {time} }} }} }} }}",
            minutes_ago(5)
        );
        let nodes = every_page(&shop, &query, "runs", Some(7)).await;
        let mut times: Vec<i64> = nodes.iter().map(|node| ms(&node[time])).collect();
        if direction == "DESC" {
            times.reverse();
        }
        assert!(times.is_sorted(), "{field} {direction}: {times:?}");
        let ids = nodes.iter().map(|node| node["triggerIDs"][0].as_str().unwrap());
        assert_eq!(sorted(ids), sorted(events.iter().map(String::as_str)), "{field} {direction}");
    }
    let some = "{ runs(filter:{query:\"event.data.n >= 5\"}) { totalCount edges { node { triggerIDs } } } }";
    assert_eq!(shop.query(some).await["runs"]["totalCount"], 2);
    let (code, message) = shop.refused("{ runs(filter:{query:\"event.data.n >=\"}) { totalCount } }").await;
    assert_eq!(code, "BAD_USER_INPUT", "{message}");
    let query = "query Page($after:String) { eventsV2(first:3, after:$after, filter:{eventNames:[\"shop/waits\"]}) \
                 { pageInfo { hasNextPage endCursor } edges { node { id } } } }";
    let nodes = every_page(&shop, query, "eventsV2", None).await;
    events.reverse();
    let seen: Vec<&str> = nodes.iter().map(|node| node["id"].as_str().unwrap()).collect();
    assert_eq!(seen, events);
}

fn sorted<'a>(ids: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut ids: Vec<&str> = ids.collect();
    ids.sort_unstable();
    ids
}

/// The nodes of all pages, one after the other.
async fn every_page(shop: &Shop, query: &str, field: &str, total: Option<u64>) -> Vec<Value> {
    let (mut nodes, mut after) = (Vec::new(), Value::Null);
    loop {
        let page = shop.query_with(query, json!({"after": after})).await[field].clone();
        assert_eq!(page["totalCount"].as_u64(), total, "{page}");
        nodes.extend(page["edges"].as_array().unwrap().iter().map(|edge| edge["node"].clone()));
        after = page["pageInfo"]["endCursor"].clone();
        if page["pageInfo"]["hasNextPage"] == false {
            return nodes;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_answered_says_so() {
    let shop = Shop::start().await;
    let (code, message) = shop.refused("{ functions { id colour } }").await;
    assert_eq!(code, "GRAPHQL_VALIDATION_FAILED");
    assert!(message.contains("colour"), "{message}");
    assert_eq!(shop.refused("{ functions { id ").await.0, "GRAPHQL_PARSE_FAILED");
    let nested = "functions { app { ".repeat(8) + "id" + &" } }".repeat(8);
    assert_eq!(shop.refused(&format!("{{ {nested} }}")).await.0, "GRAPHQL_VALIDATION_FAILED");
    let (code, message) = shop.refused("{ runs(filter:{from:\"yesterday\"}) { totalCount } }").await;
    assert!(!code.is_empty() && message.contains("yesterday"), "{code}: {message}");
    let unknown = "01KJR33V538WASH8BK3B6PQ2A5";
    assert_eq!(shop.query(&format!("{{ run(runID:\"{unknown}\") {{ id }} }}")).await["run"], Value::Null);
    assert_eq!(
        shop.query(&format!("{{ event(query:{{eventId:\"{unknown}\"}}) {{ id }} }}")).await["event"],
        Value::Null
    );
    assert_eq!(shop.refused(&format!("{{ runTrace(runID:\"{unknown}\") {{ name }} }}")).await.0, "NOT_FOUND");
    assert_eq!(shop.refused("{ run(runID:\"x\") { id } }").await.0, "BAD_USER_INPUT");
    assert_eq!(shop.refused("{ runTraceSpanOutputByID(outputID:\"x\") { data } }").await.0, "BAD_USER_INPUT");
    for body in ["{ functions { id } }", "{}", r#"{"query":""}"#, "[]", r#"{"query":"{ apps { id } }","variables":[]}"#]
    {
        let (status, answer) = shop.post_as("/v0/gql", None, body).await;
        assert_eq!((status, &answer["status"]), (400, &json!(400)), "{body}: {answer}");
    }
    // What a page of another origin may send without asking: it could remove apps otherwise.
    let forged = shop.client.post(format!("{}/v0/gql", shop.origin)).header("origin", "http://elsewhere");
    let forged = forged.header("content-type", "text/plain").body(r#"{"query":"{ apps { id } }"}"#);
    assert_eq!(forged.send().await.unwrap().status().as_u16(), 415);
    let schema = shop.query("{ __schema { queryType { name } mutationType { name } } }").await;
    assert_eq!(schema["__schema"]["mutationType"]["name"], "Mutation");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_keys_only_their_holders_are_answered() {
    let key = "signkey-test-0123456789abcdef0123456789abcdef";
    let shop = Shop::keyed(key).await;
    let body = r#"{"query":"{ functions { slug } }"}"#;
    for other in [None, Some("signkey-test-00ff")] {
        let (status, answer) = shop.post_as("/v0/gql", other, body).await;
        assert_eq!((status, &answer["status"]), (401, &json!(401)), "{answer}");
    }
    assert_eq!(shop.query("{ functions { slug } }").await["functions"].as_array().unwrap().len(), 5);
    let schema = shop.ask(&json!({"query": "{ __schema { queryType { name } } }"})).await;
    assert!(!schema["errors"].is_null() || schema["data"]["__schema"].is_null(), "{schema}");
    assert_eq!(shop.query("{ __typename }").await["__typename"], "Query");
}
