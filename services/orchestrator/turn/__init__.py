"""One turn of an agent, by stage: prepare, model step, tools, finish."""
