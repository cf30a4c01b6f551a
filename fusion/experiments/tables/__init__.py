"""The paper's tables: which rows they have, what the posts say of them, and how they are shown."""
