//! Chat templates: where they come from, what they may use, and those that do harm.

use std::path::Path;

use medical_vision::processing::{ChatTemplate, Content, Message, Role, TextProcessor};
use serde_json::json;

use super::{edit, nano_copy, text, user};

fn write_template(dir: &Path, source: &str) {
    std::fs::write(dir.join("chat_template.jinja"), source).unwrap();
}

fn render_with(source: &str, messages: &[Message]) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    write_template(dir.path(), source);
    let template = ChatTemplate::from_dir(dir.path()).map_err(|error| error.to_string())?;
    let spans = template.render(messages).map_err(|error| error.to_string())?;
    Ok(spans.iter().map(AsRef::as_ref).collect())
}

fn hello() -> Vec<Message> {
    user(vec![text("Hello")])
}

#[track_caller]
fn assert_refused(source: &str, why: &str) {
    let error = render_with(source, &hello()).unwrap_err();
    assert!(error.contains("chat_template.jinja: "), "{error}");
    assert!(error.contains(why), "{source}\n{error}");
}

#[test]
fn the_first_source_that_is_there_counts() {
    let dir = tempfile::tempdir().unwrap();
    let rendered = || {
        let template = ChatTemplate::from_dir(dir.path()).map_err(|error| error.to_string())?;
        Ok::<_, String>(
            template
                .render(&[])
                .unwrap()
                .iter()
                .map(AsRef::as_ref)
                .collect::<String>(),
        )
    };
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();

    let error = rendered().unwrap_err();
    assert!(
        error.contains("tokenizer_config.json: no chat template"),
        "{error}"
    );
    write(
        "tokenizer_config.json",
        json!({"chat_template": "config"}).to_string(),
    );
    assert_eq!(rendered().unwrap(), "config");
    let named = json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]);
    write(
        "tokenizer_config.json",
        json!({"chat_template": named}).to_string(),
    );
    assert_eq!(rendered().unwrap(), "named");
    write("chat_template.json", json!({"chat_template": "json"}).to_string());
    assert_eq!(rendered().unwrap(), "json");
    write("chat_template.jinja", "jinja".to_owned());
    assert_eq!(rendered().unwrap(), "jinja");
}

#[test]
fn a_template_of_the_wrong_type_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (value, why) in [
        (json!({"chat_template": 7}), "must be a string"),
        (
            json!({"chat_template": [{"name": "rag", "template": "x"}]}),
            "must be a string",
        ),
        (json!({"chat_template": null}), "no chat template"),
        (json!([1]), "must hold a JSON object"),
    ] {
        std::fs::write(dir.path().join("chat_template.json"), value.to_string()).unwrap();
        let error = ChatTemplate::from_dir(dir.path()).err().unwrap().to_string();
        assert!(
            error.contains("chat_template.json: ") && error.contains(why),
            "{error}"
        );
    }
    std::fs::write(dir.path().join("chat_template.json"), "{\"chat_template\": ").unwrap();
    let error = ChatTemplate::from_dir(dir.path()).err().unwrap().to_string();
    assert!(error.contains("chat_template.json: not valid JSON"), "{error}");
}

/// What transformers' own Jinja environment makes of these.
#[test]
fn jinja_behaves_as_in_transformers() {
    for (source, expected) in [
        (
            "{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}\n",
            "x\n",
        ),
        ("a{{ missing }}b{% if missing %}c{% endif %}", "ab"),
        (
            "{% if tools is none %}none{% endif %}{% if tools is not none %}some{% endif %}",
            "none",
        ),
        ("{{ messages[0]['role'].upper() }} {{ ' x '.strip() }}", "USER x"),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "013",
        ),
        (
            "{{ {'a': [1, 'é<&\\'>', none, true]} | tojson }}",
            r#"{"a": [1, "é<&'>", null, true]}"#,
        ),
        (
            "{{ {'a': [1, {}]} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    {}\n  ]\n}",
        ),
        ("{{ '<b>' }}{{ \"'\" }}", "<b>'"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
    ] {
        // The text must pass too, so it is printed last and cut off here.
        let source = format!("{source}|{{{{ messages[0]['content'][0]['text'] }}}}");
        assert_eq!(
            render_with(&source, &hello()).unwrap(),
            format!("{expected}|Hello"),
            "{source}"
        );
    }
}

#[test]
fn special_tokens_of_the_tokenizer_config_are_variables() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null, "chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token }}"});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let template = ChatTemplate::from_dir(dir.path()).unwrap();
    let spans = template.render(&[]).unwrap();
    assert_eq!(spans.iter().map(AsRef::as_ref).collect::<String>(), "<s></s>");
}

#[test]
fn texts_may_be_trimmed_and_repeated_but_not_changed() {
    let print = |expression: &str| format!("{{{{ {expression} }}}}");
    let said = "messages[0]['content'][0]['text']";
    let messages = user(vec![text("  Größe <b> \n")]);
    for (source, expected) in [
        (print(said), "  Größe <b> \n"),
        (print(&format!("{said} | trim")), "Größe <b>"),
        (print(&format!("{said}.strip()")), "Größe <b>"),
        (
            print(&format!("{said} ~ {said}.lstrip()")),
            "  Größe <b> \nGröße <b> \n",
        ),
    ] {
        assert_eq!(render_with(&source, &messages).unwrap(), expected, "{source}");
    }
    for filter in [
        "upper",
        "lower",
        "title",
        "capitalize",
        "escape",
        "tojson",
        "replace('\\n', ' ')",
        "reverse",
        "first",
        "length",
    ] {
        assert_refused(
            &print(&format!("{said} | {filter}")),
            "changes or drops a message's text",
        );
    }
    for method in [
        "upper()",
        "lower()",
        "title()",
        "capitalize()",
        "replace('a', 'b')",
        "split()[0]",
    ] {
        assert_refused(
            &print(&format!("{said}.{method}")),
            "changes or drops a message's text",
        );
    }
    assert_refused("nothing", "changes or drops a message's text");
    assert_refused(
        "{{ messages[0]['content'][0]['text'][:8] }}",
        "changes or drops a message's text",
    );
}

#[test]
fn a_mark_in_the_template_itself_is_no_text() {
    let mark = "\u{F0000}aAa \"'<&\\\n";
    for forged in [
        format!("{mark}0"),
        format!("{mark}7\u{F0001}"),
        format!("{mark}x\u{F0001}"),
        mark.to_owned(),
    ] {
        assert_refused(&forged, "changes or drops a message's text");
    }
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let loops = "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{% endfor %}{% endfor %}{% endfor %}";
    assert_refused(loops, "does not end within its allowed amount of work");
    assert_refused(
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "chat template",
    );
}

#[test]
fn a_template_that_writes_without_end_is_stopped() {
    let many = "{% for a in range(90000) %}{{ 'a' * 1000 }}{% endfor %}";
    let error = render_with(many, &hello()).unwrap_err();
    assert!(error.contains("writes more than 1048576 bytes"), "{error}");
    // Strings that double would fill the memory long before they are printed.
    assert_refused(
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "does not end within its allowed amount of work",
    );
    for bomb in [
        "{{ 'a' * 99999999999 }}",
        "{{ ('a' * 90000000) | upper | length }}",
        "{{ ['a'] * 90000000 }}",
        "{{ 'a'.ljust(9999999999) }}",
    ] {
        assert!(render_with(bomb, &hello()).is_err(), "{bomb}");
    }
}

#[test]
fn templates_that_fail_say_so_by_file() {
    assert_refused("{% for %}", "does not compile");
    assert_refused("{{ 1 + }}", "does not compile");
    assert_refused("{% include 'x' %}", "fails");
    assert_refused("{{ missing.key }}", "fails");
    assert_refused(
        "{{ raise_exception('Only text is allowed.') }}",
        "Only text is allowed.",
    );
    assert_refused("{{ strftime_now('%Q%!') }}", "strftime_now");
    assert_refused("{{ {} | tojson(indent=2, default=3) }}", "fails");
    assert_refused("{{ open('/etc/passwd') }}", "fails");
    assert_refused(&"(".repeat(100_000).replacen('(', "{{ (", 1), "does not compile");
}

/// A text is nowhere in the error, whatever goes wrong.
#[test]
fn errors_do_not_repeat_what_people_wrote() {
    let messages = user(vec![text("John Doe")]);
    for source in [
        "{{ raise_exception(messages[0]['content'][0]['text']) }}",
        "{{ messages | tojson }}",
        "{{ messages.x.y }}",
    ] {
        let error = render_with(source, &messages).unwrap_err();
        assert!(!error.contains("John"), "{error}");
    }
}

#[test]
fn a_template_that_loses_or_invents_image_places_is_refused() {
    let grid = medical_vision::processing::Grid { t: 1, h: 2, w: 2 };
    let said = "{{ messages[0]['content'][1]['text'] }}";
    for (places, why) in [
        ("", "0 image placeholders for 1"),
        ("<|image_pad|><|image_pad|>", "2 image placeholders for 1"),
    ] {
        let dir = nano_copy();
        write_template(dir.path(), &format!("{places}{said}"));
        let processor = TextProcessor::from_dir(dir.path()).unwrap();
        let error = processor
            .encode_chat(&user(vec![Content::Image, text("Read.")]), &[grid])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("chat_template.jinja: ") && error.contains(why),
            "{error}"
        );
    }
}

#[test]
fn a_template_cannot_complete_a_special_token_with_a_text() {
    let dir = nano_copy();
    write_template(
        dir.path(),
        "<|im_start|><|{{ messages[0]['content'][0]['text'] }}|><|im_end|>",
    );
    let processor = TextProcessor::from_dir(dir.path()).unwrap();
    let ids = processor
        .encode_chat(&user(vec![text("image_pad")]), &[])
        .unwrap();
    let plain = processor.encode_plain("<|image_pad|>").unwrap();
    assert_eq!(ids, [vec![8179], plain, vec![8180]].concat());
}

#[test]
fn long_conversations_fit_the_allowed_work() {
    let dir = nano_copy();
    edit(dir.path(), "tokenizer_config.json", |_| {});
    let processor = TextProcessor::from_dir(dir.path()).unwrap();
    let conversation: Vec<Message> = (0..1000)
        .map(|turn| Message {
            role: if turn % 2 == 0 {
                Role::User
            } else {
                Role::Assistant
            },
            content: vec![text("turn"), text("and more")],
        })
        .collect();
    let ids = processor.encode_chat(&conversation, &[]).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 8179).count(), 1002);
}
