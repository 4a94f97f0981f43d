//! Traces are read, and what is wrong in one is named.

use berth_simulator::{Request, read_trace};

const HEADING: &str = "arrival_s,session,model,prompt_tokens,output_tokens\n";

fn error(text: &str) -> String {
    read_trace(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_line_is_a_request() {
    let requests = read_trace(format!("{HEADING}0.052,a,m1,3180,8\n1,b,m2,0,0\n").as_bytes()).unwrap();
    let first = Request {
        line: 2,
        arrival: 52_000,
        session: "a".into(),
        model: "m1".into(),
        prompt_tokens: 3180,
        output_tokens: 8,
    };
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0], first);
    assert_eq!((requests[1].line, requests[1].arrival), (3, 1_000_000));
}

#[test]
fn columns_may_stand_in_any_order_beside_others() {
    let text = "\u{feff}model, session, user, output_tokens, prompt_tokens, arrival_s\nm, s, u, 1, 2, 3.5\n";
    let requests = read_trace(text.as_bytes()).unwrap();
    let request = &requests[0];
    assert_eq!((request.model.as_str(), request.session.as_str()), ("m", "s"));
    assert_eq!((request.output_tokens, request.prompt_tokens, request.arrival), (1, 2, 3_500_000));
}

#[test]
fn what_is_wrong_is_named_by_line_and_field() {
    for (body, parts) in [
        ("x,a,m,1,1\n", ["line 2", "arrival_s", "`x`"]),
        ("-1,a,m,1,1\n", ["line 2", "arrival_s", "seconds"]),
        ("NaN,a,m,1,1\n", ["line 2", "arrival_s", "seconds"]),
        ("inf,a,m,1,1\n", ["line 2", "arrival_s", "seconds"]),
        ("1e300,a,m,1,1\n", ["line 2", "arrival_s", "seconds"]),
        ("0,a,m,1,1\n1,a,m,-5,1\n", ["line 3", "prompt_tokens", "`-5`"]),
        ("0,a,m,1,1\n\n1,a,m,1,2.5\n", ["line 4", "output_tokens", "`2.5`"]),
        ("0,a,m,1,99999999999\n", ["line 2", "output_tokens", "up to"]),
        ("0,a,,1,1\n", ["line 2", "model", "name"]),
        ("0,a,m,1\n", ["line 2", "output_tokens", "missing"]),
        ("0\n", ["line 2", "session", "missing"]),
        ("0,a,m,1,1,9\n", ["line 2", "`9` behind output_tokens", "5 columns"]),
        ("0,a,m,1,1\n1,a,m,1,1,,\n", ["line 3", "`` behind output_tokens", "5 columns"]),
        ("0,a,m,1,1\n1,\"a,m,1,1\n2,a,m,1,1\n", ["line 3, session", "`a,m,1,1`", "not closed"]),
        ("0,a,m,1,\"1\n", ["line 2, output_tokens", "`1`", "not closed"]),
        ("0,a,m,1,\"1", ["line 2, output_tokens", "`1`", "not closed"]),
        ("0,\"say \"\"x,m,1,1\n", ["line 2, session", "not closed", "written twice"]),
        ("", ["no requests", "arrival_s", "one line for each"]),
    ] {
        let message = error(&format!("{HEADING}{body}"));
        for part in parts {
            assert!(message.contains(part), "`{part}` in: {message}");
        }
    }
}

#[test]
fn a_heading_without_a_column_is_named() {
    for text in ["", "0,a,m,1,1\n", "arrival_s,session,prompt_tokens,output_tokens\n0,a,1,1\n"] {
        let message = error(text);
        assert!(message.starts_with("line 1: there is no column `"), "{message}");
        assert!(message.contains("arrival_s,session,model,prompt_tokens,output_tokens"), "{message}");
    }
}

#[test]
fn a_heading_in_which_a_column_is_there_twice_or_a_quote_is_open_is_named() {
    let message = error("arrival_s,session,model,prompt_tokens,output_tokens, model\n0,a,m,1,1,n\n");
    assert!(message.starts_with("line 1: the column `model` is there twice"), "{message}");
    let message = error("arrival_s,\"session,model,prompt_tokens,output_tokens\n0,a,m,1,1\n");
    assert!(message.starts_with("line 1: the quote before `session,model") && message.contains("not closed"));
}

#[test]
fn bytes_that_are_no_text_are_an_error() {
    let bytes = [HEADING.as_bytes(), &[b'0', b',', 0xff, b',', b'm', b',', b'1', b',', b'1', b'\n']].concat();
    let message = read_trace(bytes.as_slice()).unwrap_err().to_string();
    assert!(message.starts_with("line 2: ") && message.contains("UTF-8"), "{message}");
}

#[test]
fn lines_may_end_as_on_windows_and_names_may_be_quoted() {
    let text = "arrival_s,session,model,prompt_tokens,output_tokens\r\n0,\"a, b\",\"say \"\"x\"\"\",1,1\r\n\r\n1,c,m,1,z";
    let message = error(text);
    assert!(message.starts_with("line 4, output_tokens: `z`"), "{message}");
    let requests = read_trace(text.replace(",z", ",2").as_bytes()).unwrap();
    assert_eq!((requests[0].session.as_str(), requests[0].model.as_str()), ("a, b", "say \"x\""));
    assert_eq!((requests[1].line, requests[1].output_tokens), (4, 2));
}
