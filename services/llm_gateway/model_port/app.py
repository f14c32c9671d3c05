"""Placeholder of the model port's application."""


class ModelPort:
    def __init__(self, completions, accounts, health):
        self.completions, self.accounts, self.health = completions, accounts, health

    async def __call__(self, scope, receive, send):
        raise NotImplementedError
