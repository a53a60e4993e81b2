// The request that was sent, as a shell command and as a Python program. The key is never among it.

/** A word for a POSIX shell. */
export function shellQuote(text) {
	if (/^[A-Za-z0-9_@%+=:,./-]+$/.test(text)) return text;
	return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A file name for curl's --form, which reads quotes, commas and semicolons in it. */
function curlFile(name) {
	return `file=@"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
}

/** A Python string literal: JSON's escapes are Python's, too. */
const pythonString = (text) => JSON.stringify(text);

/** `request`: `{url, fileName, rotation, fields: [[name, value], …], withKey}`. */
export function asCurl(request) {
	const lines = [`curl --no-buffer ${shellQuote(request.url)}`];
	if (request.withKey) lines.push('--header "Authorization: Bearer $MVP_API_KEY"');
	lines.push(`--form ${shellQuote(curlFile(request.fileName))}`);
	// --form-string: a value that begins with @ or < is not a file.
	for (const [name, value] of request.fields) lines.push(`--form-string ${shellQuote(`${name}=${value}`)}`);
	return note(request) + lines.join(" \\\n    ");
}

/** With the package requests. */
export function asPython(request) {
	const fields = request.fields.map(([name, value]) => `    ${pythonString(name)}: ${pythonString(value)},\n`).join("");
	const headers = request.withKey ? 'headers = {"Authorization": "Bearer " + os.environ["MVP_API_KEY"]}\n' : "";
	return `${note(request)}import json
${request.withKey ? "import os\n" : ""}
import requests

fields = {
${fields}}
${headers}with open(${pythonString(request.fileName)}, "rb") as page:
    answer = requests.post(
        ${pythonString(request.url)},
        files={"file": page},
        data=fields,${request.withKey ? "\n        headers=headers," : ""}
        stream=True,
        timeout=600,
    )
answer.raise_for_status()
event = None
for line in answer.iter_lines():
    if line.startswith(b"event: "):
        event = line[7:].decode()
    elif line.startswith(b"data: "):
        data = json.loads(line[6:])
        if event == "delta":
            print(data["text"], end="", flush=True)
        elif event == "error":
            raise SystemExit(data["detail"])
`;
}

function note(request) {
	return request.rotation ? `# The page was sent rotated by ${request.rotation} degrees clockwise, as PNG: rotate the file first.\n` : "";
}
