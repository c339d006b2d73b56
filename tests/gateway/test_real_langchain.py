"""LangChain's clients and a deepagents loop through the gateway to the real server and the bundled model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from deepagents import HarnessProfile, create_deep_agent, register_harness_profile
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool, StructuredTool
from langchain_deepseek import ChatDeepSeek
from langchain_nvidia_ai_endpoints import ChatNVIDIA
from langchain_openai import ChatOpenAI
from own_calls import OwnCall, find_own_call
from real_rig import KEY, NANO, OFF, PERSON, TOOLS, Real, is_person

pytestmark = [pytest.mark.server, pytest.mark.ci]
Make = Callable[[Real], BaseChatModel]
GREEDY: Any = {"model": NANO, "api_key": KEY, "temperature": 0}
LIMITS: Any = {"max_tokens": 200, "max_retries": 0, "timeout": 120}


def openai_model(real: Real) -> BaseChatModel:
    return ChatOpenAI(base_url=f"{real.url}/v1", extra_body=OFF, **GREEDY, **LIMITS)


def deepseek_model(real: Real) -> BaseChatModel:
    return ChatDeepSeek(api_base=f"{real.url}/v1", extra_body=OFF, **GREEDY, **LIMITS)


def nvidia_model(real: Real) -> BaseChatModel:
    plain = {"chat_template_kwargs": {"thinking": False}}
    return ChatNVIDIA(base_url=f"{real.url}/v1", max_completion_tokens=200, model_kwargs=plain, **GREEDY)


every_client = pytest.mark.parametrize("make", [openai_model, deepseek_model, nvidia_model])


@pytest.fixture(scope="module")
def own(real: Real) -> OwnCall:
    return find_own_call(real)


@every_client
def test_a_stream_says_what_the_whole_answer_says(real: Real, make: Make) -> None:
    model = make(real)
    whole = model.invoke("Hello")
    assert "help" in str(whole.content).lower()
    assert whole.usage_metadata and whole.usage_metadata["output_tokens"]
    chunks = list(model.stream("Hello"))
    assert len(chunks) > 3 and "".join(str(chunk.content) for chunk in chunks) == whole.content


@every_client
def test_a_forced_call_fits_its_schema(real: Real, make: Make) -> None:
    answer = make(real).bind_tools(TOOLS, tool_choice="register", parallel_tool_calls=False).invoke("Hello")
    (call,) = answer.tool_calls
    assert call["name"] == "register" and is_person(call["args"])


@every_client
def test_an_auto_call_is_the_models_own(real: Real, make: Make, own: OwnCall) -> None:
    answer = make(real).bind_tools(own.question.tools).invoke(own.question.messages)
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [(own.name, own.arguments)]


@every_client
@pytest.mark.filterwarnings("ignore::UserWarning")  # ChatNVIDIA does not know the model's name
def test_an_answer_fits_its_schema(real: Real, make: Make) -> None:
    options: Any = {} if make is nvidia_model else {"method": "json_schema"}
    assert is_person(make(real).with_structured_output(PERSON, **options).invoke("Hello"))


def tools_of(own: OwnCall, ran: list[dict[str, Any]]) -> list[BaseTool]:
    """Return the question's tools as an agent runs them; `ran` notes the calls."""

    def make_tool(function: dict[str, Any]) -> BaseTool:
        def run(**arguments: Any) -> str:
            ran.append({"name": function["name"], "args": arguments})
            return own.question.result

        about = function.get("description", function["name"])
        return StructuredTool.from_function(
            run, name=function["name"], description=about, args_schema=function["parameters"]
        )

    return [make_tool(tool["function"]) for tool in own.question.tools]


def test_a_deep_agent_calls_a_tool_and_streams_its_answer(real: Real, own: OwnCall) -> None:
    ran: list[dict[str, Any]] = []
    model = openai_model(real).model_copy(update={"model_kwargs": {"parallel_tool_calls": False}})
    agent = create_deep_agent(model=model, tools=tools_of(own, ran))
    asked: Any = {"messages": own.question.messages}
    texts, state = [], {}
    for mode, found in agent.stream(asked, {"recursion_limit": 12}, stream_mode=["messages", "values"]):
        if mode == "messages":
            texts.append(str(found[0].content))
        else:
            state = found
    assert ran and ran[0]["name"] in [tool["function"]["name"] for tool in own.question.tools]
    assert state["messages"][-1].content and state["messages"][-1].content in "".join(texts)


def test_a_deep_agent_answers_in_its_schema(real: Real) -> None:
    own = ("ls", "read_file", "write_file", "edit_file", "delete", "glob", "grep", "task", "execute")
    # With them the bundled model prefers calls to an answer for ever; the key is used by no other agent here.
    register_harness_profile("deepseek", HarnessProfile(excluded_tools=frozenset(own)))
    agent = create_deep_agent(model=deepseek_model(real), response_format=ProviderStrategy(schema=PERSON))
    state = agent.invoke({"messages": [{"role": "user", "content": "Hello"}]}, {"recursion_limit": 6})
    assert is_person(state["structured_response"])
