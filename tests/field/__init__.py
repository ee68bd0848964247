"""Files, chats, databases and model folders as people really have them, each kind as a table or a property."""
