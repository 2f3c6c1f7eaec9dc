"""Budgets between the prompt and the output: in engines, frameworks and tool servers.

`Generation` is the contract that every adapter follows; `Policy` is what they do alike. Each
adapter is a module of its own that needs the package it adapts, and is imported by name:

| module | for |
|---|---|
| `bursar.middleware.xllamacpp` | llama.cpp's own server, in this process |
| `bursar.middleware.llama_cpp` | llama-cpp-python |
| `bursar.middleware.transformers` | transformers |
| `bursar.middleware.vllm` | vLLM's server: ASGI middleware |
| `bursar.middleware.vllm_logits` | vLLM's engine: logits processor |
| `bursar.middleware.langchain` | LangChain 1.x |
| `bursar.middleware.openai_agents` | the OpenAI Agents SDK |
| `bursar.middleware.pydantic_ai` | Pydantic AI |
| `bursar.middleware.mcp` | tool calls of an MCP server |
| `bursar.middleware.litellm` | LiteLLM's proxy |
"""

from bursar.middleware._generation import AsyncGeneration, Generation
from bursar.middleware._policy import BUDGET_EXHAUSTED, NOTICES, Capability, Policy

__all__ = ["BUDGET_EXHAUSTED", "NOTICES", "AsyncGeneration", "Capability", "Generation", "Policy"]
