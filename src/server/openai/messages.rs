//! The messages of a request.

use super::errors::{RequestError, shortened};
use super::json::{Json, Object, Path, invalid, unsupported, wrong_type};
use super::pictures::DataUri;
use crate::processing::{Content, Message, Role};

/// Maximum number of messages.
pub(super) const MAX_MESSAGES: usize = 256;
/// Maximum number of parts of a message.
pub(super) const MAX_CONTENT_PARTS: usize = 256;
/// Maximum bytes of all texts together: more than any model's context holds.
pub(super) const MAX_TEXT_BYTES: usize = 4 << 20;

/// Keys of an answer that clients send back with it.
const OF_AN_ANSWER: [&str; 5] = ["refusal", "annotations", "audio", "function_call", "tool_calls"];

/// The messages, and the pictures that they hold, in order.
pub(super) struct Conversation<'j> {
    pub messages: Vec<Message>,
    pub pictures: Vec<DataUri<'j>>,
    pub text_bytes: usize,
}

impl<'j> Conversation<'j> {
    /// Reads `messages` of `body`.
    pub(super) fn read(body: &Object<'j, '_>, max_pictures: usize) -> Result<Self, RequestError> {
        let path = body.place("messages");
        let messages = list(body.required("messages")?, &path, "messages", MAX_MESSAGES)?;
        let mut conversation = Self {
            messages: Vec::with_capacity(messages.len()),
            pictures: Vec::new(),
            text_bytes: 0,
        };
        for (index, message) in messages.iter().enumerate() {
            conversation.add(message, &Path::Index(&path, index), max_pictures)?;
        }
        match conversation.messages.last() {
            Some(last) if last.role != Role::User => {
                let last = Path::Index(&path, messages.len() - 1);
                let reason = "must be \"user\" in the last message: the model answers it";
                Err(invalid(&Path::Key(&last, "role"), reason))
            }
            _ => Ok(conversation),
        }
    }

    fn add(
        &mut self,
        message: &'j Json<'j>,
        path: &Path<'_>,
        max_pictures: usize,
    ) -> Result<(), RequestError> {
        let message = Object::of(message, path)?;
        message.only(&[&["role", "content", "name"], &OF_AN_ANSWER])?;
        let role = role(&message)?;
        message.text("name")?;
        for key in OF_AN_ANSWER {
            let empty = match message.get(key) {
                None => true,
                Some(Json::List(list)) => list.is_empty(),
                Some(_) => false,
            };
            if !empty {
                return Err(unsupported(&message.place(key), "is not supported"));
            }
        }
        let place = message.place("content");
        let content = match message.required("content")? {
            Json::Text(text) => vec![self.text(text, &place)?],
            parts @ Json::List(_) => {
                let parts = list(parts, &place, "parts", MAX_CONTENT_PARTS)?;
                let parts = parts.iter().enumerate();
                let parts = parts
                    .map(|(index, part)| self.part(part, &Path::Index(&place, index), role, max_pictures));
                parts.collect::<Result<_, _>>()?
            }
            _ => return Err(wrong_type(&place, "a string or an array of parts")),
        };
        let is_empty = |part: &Content| matches!(part, Content::Text(text) if text.is_empty());
        if role == Role::User && content.iter().all(is_empty) {
            return Err(invalid(&place, "is empty"));
        }
        self.messages.push(Message { role, content });
        Ok(())
    }

    fn part(
        &mut self,
        part: &'j Json<'j>,
        path: &Path<'_>,
        role: Role,
        max_pictures: usize,
    ) -> Result<Content, RequestError> {
        let part = Object::of(part, path)?;
        part.required("type")?;
        let kind = part.text("type")?.unwrap_or_default();
        match kind {
            "text" => {
                part.only(&[&["type", "text"]])?;
                part.required("text")?;
                self.text(part.text("text")?.unwrap_or_default(), &part.place("text"))
            }
            "image_url" | "file" if role != Role::User => {
                let reason =
                    format!("is \"{kind}\": pictures and files are accepted in messages of the user only");
                Err(unsupported(&part.place("type"), &reason))
            }
            "image_url" | "file" => {
                part.only(&[&["type", kind]])?;
                if self.pictures.len() == max_pictures {
                    let reason = format!("is one picture too many: the limit is {max_pictures}");
                    return Err(invalid(path, &reason));
                }
                let picture = match kind {
                    "file" => DataUri::read_document(&part)?,
                    _ => DataUri::read(&part)?,
                };
                self.pictures.push(picture);
                // Of a document, until its pages are counted.
                Ok(Content::Image)
            }
            other => {
                let reason = format!(
                    "is \"{}\": supported are \"text\", \"image_url\" and \"file\"",
                    shortened(other)
                );
                Err(unsupported(&part.place("type"), &reason))
            }
        }
    }

    fn text(&mut self, text: &str, path: &Path<'_>) -> Result<Content, RequestError> {
        self.text_bytes += text.len();
        if self.text_bytes > MAX_TEXT_BYTES {
            let reason = format!("is too long: all texts together may have {MAX_TEXT_BYTES} bytes");
            return Err(RequestError {
                code: Some("string_above_max_length"),
                ..invalid(path, &reason)
            });
        }
        Ok(Content::Text(text.to_owned()))
    }
}

/// `value` as an array of 1 to `most`.
fn list<'j>(
    value: &'j Json<'j>,
    path: &Path<'_>,
    what: &str,
    most: usize,
) -> Result<&'j [Json<'j>], RequestError> {
    let Json::List(list) = value else {
        return Err(wrong_type(path, &format!("an array of {what}")));
    };
    if list.is_empty() {
        return Err(invalid(path, "is empty"));
    }
    if list.len() > most {
        let reason = format!("has {} {what}; the limit is {most}", list.len());
        return Err(invalid(path, &reason));
    }
    Ok(list)
}

fn role(message: &Object<'_, '_>) -> Result<Role, RequestError> {
    message.required("role")?;
    match message.text("role")?.unwrap_or_default() {
        "system" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        other => {
            let reason = format!(
                "is \"{}\": supported are \"system\", \"user\" and \"assistant\"",
                shortened(other)
            );
            Err(unsupported(&message.place("role"), &reason))
        }
    }
}
