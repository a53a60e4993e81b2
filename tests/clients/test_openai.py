"""The official client against the shipped server: what its users do, and each class of error.

With RECORD=FILE the requests and answers of `Reading` and `Leaving` are written there, for `cargo test`
(tests/suite/server/openai/clients.rs).
"""

import asyncio
import json
import os
import re
import unittest

import openai
from common import MODEL, PATIENCE, EndlessModel, Server, eventually, golden, server_for_all, user
from recording import Recorder

PAGE = "small_strip_rx.png"
OTHER_PAGE = "small_strip_labs.png"
PROMPT = golden(PAGE)["prompt"]


RECORD = os.environ.get("RECORD")


def tearDownModule():
    if RECORD:
        Recorder.write(RECORD)


def connect(url, kind=openai.OpenAI):
    return kind(base_url=url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE)


class Reading(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = server_for_all()
        cls.addClassCleanup(cls.server.close)
        cls.recorder = None
        url = cls.server.url
        if RECORD:
            cls.recorder = Recorder(url)
            url = cls.recorder.url
            cls.addClassCleanup(cls.recorder.close)
        cls.client = connect(url)

    def setUp(self):
        if self.recorder:
            self.recorder.name = self.id().rsplit(".", 1)[-1].removeprefix("test_")

    def ask(self, *parts, **options):
        return self.client.chat.completions.create(model="default", messages=[user(*parts)], **options)

    def test_models(self):
        models = self.client.models.list().data
        # Its adapters, if it has any, come after it.
        self.assertEqual(models[0].id, "qwen25-vl-nano")
        self.assertEqual(self.client.models.retrieve("default"), models[0])

    def test_text(self):
        answer = self.ask("Read the page.", max_tokens=8)
        self.assertIn(answer.choices[0].finish_reason, ["stop", "length"])
        self.assertLessEqual(answer.usage.completion_tokens, 8)

    def test_picture(self):
        answer = self.ask(PAGE, PROMPT)
        self.assertEqual(answer.choices[0].message.content, golden(PAGE)["text"])
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.usage.prompt_tokens, golden(PAGE)["prompt_tokens"])
        again = self.ask(PAGE, PROMPT)
        self.assertEqual(again.choices[0].message.content, answer.choices[0].message.content)
        self.assertGreater(again.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertEqual(len(answer.medvision["images"]), 1)

    def test_conversation(self):
        first = self.ask(PAGE, PROMPT).choices[0].message
        messages = [
            {"role": "system", "content": "You read medical documents."},
            user(PAGE, PROMPT),
            first.model_dump(),
            user("Again."),
        ]
        answer = self.client.chat.completions.create(model="qwen25-vl-nano", messages=messages, max_tokens=8)
        self.assertGreater(answer.usage.prompt_tokens, golden(PAGE)["prompt_tokens"])

    def test_streamed(self):
        stream = self.ask(PAGE, PROMPT, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        self.assertEqual(text, golden(PAGE)["text"])
        self.assertEqual(chunks[-2].choices[0].finish_reason, "stop")
        self.assertEqual(chunks[-1].usage.completion_tokens, golden(PAGE)["completion_tokens"])

    def test_two_pictures(self):
        answer = self.ask(PAGE, OTHER_PAGE, PROMPT, max_tokens=32)
        self.assertEqual(len(answer.medvision["images"]), 2)

    def test_low_detail(self):
        message = user(PAGE, PROMPT)
        message["content"][0]["image_url"]["detail"] = "low"
        options = {"max_tokens": 4, "extra_body": {"mm_processor_kwargs": {"max_pixels": 100 * 784}, "top_k": 1}}
        answer = self.client.chat.completions.create(model="default", messages=[message], **options)
        self.assertLessEqual(answer.medvision["images"][0]["tokens"], 100)

    def test_logprobs(self):
        answer = self.ask(PAGE, PROMPT, logprobs=True, top_logprobs=5, max_tokens=12)
        tokens = answer.choices[0].logprobs.content
        text = b"".join(bytes(token.bytes) for token in tokens).decode()
        self.assertEqual(text, answer.choices[0].message.content)
        for token in tokens:
            self.assertEqual(len(token.top_logprobs), 5)
            self.assertEqual(token.top_logprobs[0].token, token.token, "greedy")
            self.assertLessEqual(token.logprob, 0)

    def test_seed(self):
        def sampled(seed):
            answer = self.ask(PAGE, "ramble", temperature=2, seed=seed, max_tokens=24)
            return answer.choices[0].message.content

        self.assertEqual(sampled(7), sampled(7))
        self.assertNotEqual(sampled(7), sampled(8))

    def test_seed_of_the_likeliest(self):
        """With one token to choose from, any seed answers the same on every machine."""
        options = {"temperature": 1.5, "max_tokens": 12, "extra_body": {"top_k": 1}}
        answers = [self.ask(PAGE, PROMPT, seed=seed, **options) for seed in (7, -8)]
        self.assertEqual(*[answer.choices[0].message.content for answer in answers])

    def test_stop(self):
        answer = self.ask(PAGE, PROMPT, stop=["\n", "never"])
        self.assertEqual(answer.choices[0].message.content, golden(PAGE)["text"].split("\n")[0])
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_bad_requests(self):
        cases = [
            ({"temperature": 3}, "temperature", "invalid_value"),
            ({"n": 2}, "n", "unsupported_value"),
            ({"extra_body": {"best_of": 2}}, "best_of", "unknown_parameter"),
            ({"max_tokens": 100_000}, "max_tokens", "invalid_value"),
            ({"response_format": {"type": "json_object"}}, "response_format.type", "unsupported_value"),
        ]
        for options, param, code in cases:
            with self.assertRaises(openai.BadRequestError) as caught:
                self.ask("hello", **options)
            self.assertEqual((caught.exception.param, caught.exception.code), (param, code))
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/page.png"}}]}
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model="default", messages=[message])
        self.assertEqual(caught.exception.param, "messages[0].content[0].image_url.url")
        self.assertIn("data URI", str(caught.exception))

    def test_context(self):
        context = json.loads((MODEL / "config.json").read_text())["max_position_embeddings"]
        with self.assertRaises(openai.BadRequestError) as caught:
            self.ask("word " * 20_000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        needed = re.search(r"needs (?:at least )?(\d+) tokens", str(caught.exception))
        self.assertGreater(int(needed[1]), context)
        self.assertIn(f"holds {context}", str(caught.exception))

    def test_not_found(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="gpt-4o", messages=[user("hello")])
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("gpt-4o")
        with self.assertRaises(openai.NotFoundError):
            self.client.embeddings.create(model="default", input="hello", encoding_format="float")


class Asynchronous(unittest.TestCase):
    def test_several_at_once(self):
        server = server_for_all()
        self.addCleanup(server.close)

        async def ask():
            async with connect(server.url, openai.AsyncOpenAI) as client:
                whole = [
                    client.chat.completions.create(model="default", messages=[user(PAGE, PROMPT)]) for _ in range(3)
                ]
                answers = await asyncio.gather(*whole)
                stream = await client.chat.completions.create(
                    model="default", messages=[user(PAGE, PROMPT)], stream=True
                )
                chunks = [chunk async for chunk in stream]
                return answers, chunks

        answers, chunks = asyncio.run(ask())
        text = golden(PAGE)["text"]
        self.assertEqual([answer.choices[0].message.content for answer in answers], [text] * 3)
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks), text)


class Leaving(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        endless = EndlessModel()
        cls.addClassCleanup(endless.__exit__)
        cls.server = Server("--queue", "0", "--max-batch", "1", "--max-new-tokens", "3900", model=endless.__enter__())
        cls.addClassCleanup(cls.server.close)
        cls.recorder = None
        cls.url = cls.server.url
        if RECORD:
            cls.recorder = Recorder(cls.url, server="endless")
            cls.url = cls.recorder.url
            cls.addClassCleanup(cls.recorder.close)

    def record(self, name):
        if self.recorder:
            self.recorder.name = name

    def ramble(self, client):
        return client.chat.completions.create(
            model="default", messages=[user(PAGE, "ramble")], stream=True, temperature=2, seed=1
        )

    def free(self):
        eventually("its slot is free", lambda: self.server.health()["requests_admitted"] == 0)

    def test_leaving_a_stream_frees_the_slot(self):
        self.record("leaving")
        stream = self.ramble(connect(self.url))
        for _ in range(3):
            next(iter(stream))
        stream.close()
        self.free()
        self.record(None)
        last = self.server.log("page read")[-1]
        self.assertEqual(last["finish_reason"], "cancelled")
        self.assertLess(last["completion_tokens"], 3900)
        self.assertLessEqual(last["wasted_tokens"], 2)

    def test_a_full_queue_is_an_internal_server_error(self):
        client = connect(self.url)
        self.record("full_queue")
        stream = self.ramble(client)
        next(iter(stream))
        with self.assertRaises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="default", messages=[user("hello")], max_tokens=1)
        self.assertEqual(caught.exception.status_code, 503)
        self.assertIn("retry-after", caught.exception.response.headers)
        self.assertEqual(caught.exception.type, "server_error")
        stream.close()
        self.free()
        self.record(None)
        client.chat.completions.create(model="default", messages=[user("hello")], max_tokens=1)

    def test_leaving_asynchronously_frees_the_slot(self):
        async def leave():
            async with connect(self.server.url, openai.AsyncOpenAI) as client:
                stream = await self.ramble(client)
                async for _ in stream:
                    break
                await stream.close()

        asyncio.run(leave())
        self.free()


if __name__ == "__main__":
    unittest.main()
