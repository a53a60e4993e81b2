//! The plain part of Jinja that is evaluated: equal to a whole Jinja engine where it is used as chat templates use it,
//! bounded where it is not.

use medical_vision::processing::{ChatTemplate, Content, Message, Role, TextProcessor};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment};
use proptest::prelude::*;
use serde_json::json;

use super::{nano_copy, nano_dir, text, user};

fn template(source: &str) -> Result<ChatTemplate, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    ChatTemplate::from_dir(dir.path()).map_err(|error| error.to_string())
}

fn rendered(template: &ChatTemplate, messages: &[Message]) -> Result<String, String> {
    let spans = template.render(messages).map_err(|error| error.to_string())?;
    Ok(spans.iter().map(AsRef::as_ref).collect())
}

fn render(source: &str, messages: &[Message]) -> Result<String, String> {
    rendered(&template(source)?, messages)
}

/// What minijinja makes of it, with the texts themselves.
fn judged(source: &str, messages: &[Message]) -> String {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.unwrap());
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let part = |content: &Content| match content {
        Content::Image => json!({"type": "image"}),
        Content::Text(text) => json!({"type": "text", "text": text}),
    };
    let messages: Vec<_> = messages
        .iter()
        .map(|message| {
            let role = match message.role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
            };
            let content: Vec<_> = message.content.iter().map(part).collect();
            json!({"role": role, "content": content})
        })
        .collect();
    let context =
        json!({"messages": messages, "add_generation_prompt": true, "tools": null, "documents": null});
    environment
        .render_str(source, Value::from(Serde(context)))
        .unwrap()
}

fn published() -> String {
    let text = std::fs::read_to_string(nano_dir().join("chat_template.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    file["chat_template"].as_str().unwrap().to_owned()
}

fn conversation() -> impl Strategy<Value = Vec<Message>> {
    let role = prop_oneof![Just(Role::System), Just(Role::User), Just(Role::Assistant)];
    let part = prop_oneof![
        Just(Content::Image),
        "[ \\n]{0,2}[a-zß🙂<|>'\"{%}]{0,6}[ \\n]{0,2}".prop_map(Content::Text),
    ];
    let message = (role, prop::collection::vec(part, 0..4));
    let message = message.prop_map(|(role, content)| Message { role, content });
    prop::collection::vec(message, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The published template: by its hash, evaluated, and by a whole engine.
    #[test]
    fn the_published_template_is_rendered_alike_by_all(messages in conversation()) {
        let source = published();
        let native = template(&source).unwrap();
        prop_assert!(native.is_published());
        let evaluated = template(&format!("{{# another hash #}}{source}")).unwrap();
        prop_assert!(!evaluated.is_published());
        let expected = judged(&source, &messages);
        prop_assert_eq!(&rendered(&native, &messages).unwrap(), &expected);
        prop_assert_eq!(&rendered(&evaluated, &messages).unwrap(), &expected);
    }

    /// Templates of any text end: with a result or an error, not with a panic.
    #[test]
    fn templates_of_any_text_end(
        pieces in prop::collection::vec(
            prop::sample::select(vec![
                "{{ ", " }}", "{% for m in messages %}", "{% endfor %}", "{% if ", " %}", "{% else %}", "{% endif %}",
                "{% set x = ", "messages", "m", "x", ".content", "[0]", "['text']", " + ", " ~ ", " - ", " * ", "not ", "(", ")",
                "'a'", "1", "-1", "[1:]", " | length", " | upper", " | join", " in ", " is defined", "range(3)", "loop.first",
                "namespace(v=1)", "x.v", " and ", " or ", " == ", " < ", ".split()", ".strip()", "none", "{'a': 1}", "text",
            ]),
            0..24,
        )
    ) {
        let _ = render(&pieces.concat(), &user(vec![Content::Image, text("Hello")]));
    }
}

/// What templates of other models use.
#[test]
fn what_templates_use_is_computed_as_by_a_whole_engine() {
    let messages = vec![
        Message {
            role: Role::System,
            content: vec![text("Be brief.")],
        },
        Message {
            role: Role::User,
            content: vec![Content::Image, text("Read."), text("Now.")],
        },
    ];
    for source in [
        // ChatML.
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for c in message.content %}{{ c.text }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        // The tools' part of Qwen2.5's text template, which nothing fills here.
        "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n{%- else %}\n    {%- if messages[0]['role'] == 'system' %}\n        {{- '<|im_start|>system\\n' + messages[0]['content'][0]['text'] + '<|im_end|>\\n' }}\n    {%- else %}\n        {{- 'none' }}\n    {%- endif %}\n{%- endif %}\n{%- for message in messages %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) or (message.role == \"assistant\" and not message.tool_calls) %}\n        {{- '<|im_start|>' + message.role + '\\n' }}{% for part in message.content if part.type == 'text' %}{{ part.text }}{% if not loop.last %} {% endif %}{% endfor %}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}",
        "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.length }}{{ loop.last }}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% for p in m['content'] %}{% if p['type'] == 'text' %}{% set ns.s = ns.s ~ p['text'] ~ '/' %}{% endif %}{% endfor %}{% endfor %}{{ ns.n }}{{ ns.s }}",
        "{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% for p in m.content %}{{ p.text }}{{ x }}{% endfor %}{% endfor %}{{ x }}",
        "{% for m in messages[1:] %}{% for p in m.content | reverse %}{{ p.text }}{% endfor %}{% endfor %}{{ messages[0].content[0].text }}{{ messages[-1].content | length }}",
        "{% for m in messages %}{{ m.role | upper if m.role != 'user' else m.role | title }}{% for p in m.content %}{{ p.text | default('-') }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% for p in m.content %}{% if 'text' in p and p.text is string and p is mapping %}{{ p.text }}{% elif p.type in ['image', 'video'] %}<image>{% endif %}{% endfor %}{% else %}empty{% endfor %}",
        "{% set all %}{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}{% endset %}{{ all | trim }}|{{ 7 // 2 }}{{ 7 % 3 }}{{ -7 // 2 }}{{ 2 * 3 - 1 }}{{ 'ab' * 2 }}{{ [1, 2, 3][1] }}{{ {'a': 4}['a'] }}{{ {'a': 4}.a }}{{ 1 < 2 <= 2 }}{{ 'a' ~ 1 ~ none }}",
    ] {
        // minijinja writes booleans and none its own way; transformers, and this program, write Python's.
        let judged = judged(source, &messages);
        let expected = judged
            .replace("true", "True")
            .replace("false", "False")
            .replace("none", "None");
        let got = render(source, &messages)
            .map_err(|error| format!("{error}\n{source}"))
            .unwrap();
        assert_eq!(got.replace("none", "None"), expected, "{source}");
    }
}

/// Every member of a known attack, and more of its kind: an error within the allowance, whatever it would have cost.
#[test]
fn hostile_templates_are_refused() {
    let hostile = [
        // Doubling, of lists, strings, maps and loops.
        "{% set ns=namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l=ns.l+ns.l %}{% endfor %}{{ ns.l|length }}".to_owned(),
        "{% set ns=namespace(l=messages) %}{% for i in range(60) %}{% set ns.l=ns.l+ns.l %}{% endfor %}{{ ns.l == ns.l }}".to_owned(),
        "{% set ns=namespace(s='ab') %}{% for i in range(60) %}{% set ns.s=ns.s~ns.s %}{% endfor %}".to_owned(),
        "{% set ns=namespace(s='ab') %}{% for i in range(60) %}{% set ns.s=ns.s+ns.s %}{% endfor %}".to_owned(),
        "{% set ns=namespace(s='ab') %}{% for i in range(60) %}{% set ns.s=ns.s.replace('a', ns.s) %}{% endfor %}".to_owned(),
        "{% set ns=namespace(s='ab') %}{% for i in range(60) %}{% set ns.s=ns.s.join([ns.s, ns.s, ns.s]) %}{% endfor %}".to_owned(),
        "{% set ns=namespace(s='ab') %}{% for i in range(60) %}{% set ns.s=ns.s|replace('', ns.s) %}{% endfor %}".to_owned(),
        // Lists that share their parts: small in memory, endless to walk.
        "{% set ns=namespace(l=[1]) %}{% for i in range(31) %}{% set ns.l=[ns.l,ns.l] %}{% endfor %}{{ ns.l }}".to_owned(),
        "{% set ns=namespace(l=[1],k=[1]) %}{% for i in range(30) %}{% set ns.l=[ns.l,ns.l] %}{% set ns.k=[ns.k,ns.k] %}{% endfor %}{{ ns.l==ns.k }}".to_owned(),
        "{% set ns=namespace(l=[1]) %}{% for i in range(30) %}{% set ns.l={'a':ns.l,'b':ns.l} %}{% endfor %}{{ ns.l|tojson(indent=16) }}".to_owned(),
        // Depth.
        "{% set ns=namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l=[ns.l] %}{% endfor %}{{ ns.l }}".to_owned(),
        "{% set ns=namespace(l=[1]) %}{% for i in range(99999) %}{% set ns.l={'a':ns.l} %}{% endfor %}{{ ns.l }}".to_owned(),
        format!("{{{{ 1{} }}}}", "+1".repeat(30_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(50_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(15_000)),
        format!("{{{{ a{} }}}}", ".b".repeat(100_000)),
        format!("{{{{ a{} }}}}", "[0]".repeat(20_000)),
        format!("{{{{ a{} }}}}", "|trim".repeat(12_000)),
        format!("{{{{ a{} }}}}", "()".repeat(30_000)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(5_000)),
        format!("{{{{ 1{} }}}}", " is defined".repeat(5_000)),
        format!("{{{{ 1{} }}}}", "**2".repeat(20_000)),
        format!("{{{{ 'a'{} }}}}", "~'a'".repeat(15_000)),
        format!("{{{{ 1{} }}}}", "<1".repeat(30_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(30_000), "]".repeat(30_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000)),
        format!("{}{}", "{% if 1 %}".repeat(3_000), "{% endif %}".repeat(3_000)),
        format!("{}{}", "{% for i in [1] %}".repeat(2_000), "{% endfor %}".repeat(2_000)),
        format!("{}{}", "{% with %}".repeat(3_000), "{% endwith %}".repeat(3_000)),
        // Size.
        "{{ \"{:>999999999}\".format(\"x\") }}".to_owned(),
        "{{ 'x' * 10**9 }}".to_owned(),
        "{{ 'x' * 1000000000 }}".to_owned(),
        "{{ 1000000000 * 'x' }}".to_owned(),
        "{{ [1] * 1000000000 }}".to_owned(),
        "{{ range(1000000000) | length }}".to_owned(),
        "{{ range(10**9) }}".to_owned(),
        "{{ range(9223372036854775807, -9223372036854775807, -1) }}".to_owned(),
        "{{ range(-9223372036854775807, 9223372036854775807, 9223372036854775807) | join(',') | length }}".replace("9223372036854775807)", "1)"),
        "{{ 2**999999999 }}".to_owned(),
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}".to_owned(),
        format!("{{% set s = '{}' %}}{{% for i in range(90000) %}}{{% if s.startswith(s) and s == s %}}{{% endif %}}{{% endfor %}}", "x".repeat(50_000)),
        format!("{{% for i in range(400000) %}}{{{{ {} }}}}{{% endfor %}}", "x".repeat(60_000)),
        "x".repeat(200_000),
        // Filters, methods and statements that multiply, write elsewhere or call themselves.
        "{{ 'x'.center(999999999) }}".to_owned(),
        "{{ 'x'.ljust(999999999) }}".to_owned(),
        "{{ 'x'.zfill(999999999) }}".to_owned(),
        "{{ 'x' | center(999999999) }}".to_owned(),
        "{{ 'x' | indent(999999999) }}".to_owned(),
        "{{ [1] | tojson(indent=999999999, sort_keys=true) }}".to_owned(),
        "{{ 'x' | format(1) }}".to_owned(),
        "{{ '%999999999d' % 1 }}".to_owned(),
        "{{ [1] | batch(999999999, 0) | list }}".to_owned(),
        "{{ [1] | slice(999999999) | list }}".to_owned(),
        "{{ lipsum(9999999) }}".to_owned(),
        "{{ cycler('a') }}{{ joiner() }}{{ dict(a=1) }}".to_owned(),
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{% endcall %}".to_owned(),
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
        "{% include 'chat_template' %}".to_owned(),
        "{% extends 'chat_template' %}".to_owned(),
        "{% import 'chat_template' as t %}".to_owned(),
        "{% from 'chat_template' import t %}".to_owned(),
        "{% block a %}{{ self.a() }}{% endblock %}".to_owned(),
        "{% filter upper %}a{% endfilter %}".to_owned(),
        "{{ ''.__class__.__mro__ }}".to_owned(),
        "{{ raise_exception('boom') }}".to_owned(),
    ];
    for source in &hostile {
        let shown: String = source.chars().take(100).collect();
        let messages = user(vec![Content::Image, text("Hello")]);
        // Each has the text at its end, so that nothing else is missing.
        let whole = format!("{source}{{{{ messages[0]['content'][1]['text'] }}}}");
        let error = render(&whole, &messages).expect_err(&shown);
        assert!(
            error.contains("chat_template.jinja: the chat template"),
            "{shown}: {error}"
        );
        assert!(error.chars().count() < 1_000, "{shown}: {error}");
    }
}

#[test]
fn long_texts_of_a_template_are_not_repeated_whole() {
    let error = render(
        &format!("{{{{ raise_exception('{}') }}}}", "x".repeat(60_000)),
        &[],
    )
    .unwrap_err();
    assert!(error.contains("xxx") && error.chars().count() < 600, "{error}");
}

#[test]
fn a_template_that_fails_at_every_request_is_found_by_a_try() {
    let dir = nano_copy();
    let fine = TextProcessor::from_dir(dir.path()).unwrap();
    fine.check_template().unwrap();
    for source in [
        "{{ raise_exception('boom') }}",
        "{{ messages[0]['content'] + 'x' }}",
        "{% for m in messages %}{{ m.content[1].text }}{% endfor %}",
    ] {
        std::fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
        let processor = TextProcessor::from_dir(dir.path()).unwrap();
        let error = processor.check_template().unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja: "), "{error}");
    }
}
