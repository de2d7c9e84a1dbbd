#include "fields.h"

#include <cstdio>
#include <cstring>

namespace msconv::plugin
{

namespace
{

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

//! One attribute: its values are `length` 32-bit numbers in a row.
struct Field
{
    char const* name;
    PluginFieldType type;
    int32_t length;
    bool required;
    void* (*values)(Attributes&);
};

constexpr PluginFieldType kInts = PluginFieldType::kINT32;
constexpr PluginFieldType kFloats = PluginFieldType::kFLOAT32;

static_assert(sizeof(PaddingSemantics) == 4 && sizeof(PaddingMode) == 4 && sizeof(Activation) == 4,
    "fields of type kINT32 point to these");

constexpr Field kFields[kFieldCount] = {
    {"sources", kInts, 4, true, [](Attributes& a) -> void* { return a.sources; }},
    {"kernel_shape", kInts, 2, true, [](Attributes& a) -> void* { return a.kernelShape; }},
    {"has_bias", kInts, 1, false, [](Attributes& a) -> void* { return &a.hasBias; }},
    {"strides", kInts, 2, false, [](Attributes& a) -> void* { return a.strides; }},
    {"dilations", kInts, 2, false, [](Attributes& a) -> void* { return a.dilations; }},
    {"pads", kInts, 4, false, [](Attributes& a) -> void* { return a.pads; }},
    {"group", kInts, 1, false, [](Attributes& a) -> void* { return &a.group; }},
    {"padding_semantics", kInts, 1, false, [](Attributes& a) -> void* { return &a.paddingSemantics; }},
    {"padding_mode", kInts, 1, false, [](Attributes& a) -> void* { return &a.paddingMode; }},
    {"activation", kInts, 1, false, [](Attributes& a) -> void* { return &a.activation; }},
    {"activation_params", kFloats, 2, false, [](Attributes& a) -> void* { return a.activationParams; }},
};

constexpr std::size_t kValueSize = 4;

void const* valuesOf(Field const& field, Attributes const& attributes) noexcept
{
    return field.values(const_cast<Attributes&>(attributes));
}

char const* nameOf(PluginFieldType type) noexcept
{
    switch (type)
    {
    case PluginFieldType::kFLOAT16: return "float16";
    case PluginFieldType::kFLOAT32: return "float32";
    case PluginFieldType::kFLOAT64: return "float64";
    case PluginFieldType::kINT8: return "int8";
    case PluginFieldType::kINT16: return "int16";
    case PluginFieldType::kINT32: return "int32";
    case PluginFieldType::kCHAR: return "char";
    case PluginFieldType::kDIMS: return "dims";
    default: return "another type";
    }
}

int32_t indexOf(char const* name) noexcept
{
    int32_t i = 0;
    while (i < kFieldCount && std::strcmp(kFields[i].name, name) != 0)
    {
        ++i;
    }
    return i;
}

//! Null, or what is wrong with the values of a field whose name is known.
char const* read(PluginField const& given, Field const& field, Attributes& attributes, Message& message) noexcept
{
    if (given.type != field.type)
    {
        return message.format("%s is of type %s; it must be %s", field.name, nameOf(given.type), nameOf(field.type));
    }
    if (given.length != field.length)
    {
        return message.format("%s has %d values; it must have %d", field.name, given.length, field.length);
    }
    if (given.data == nullptr)
    {
        return message.format("%s has no values", field.name);
    }
    std::memcpy(field.values(attributes), given.data, field.length * kValueSize);
    return nullptr;
}

} // namespace

PluginFieldCollection const* fieldNames() noexcept
{
    struct Names
    {
        PluginField fields[kFieldCount];
        PluginFieldCollection collection{kFieldCount, fields};

        Names() noexcept
        {
            for (int32_t i = 0; i < kFieldCount; ++i)
            {
                fields[i] = PluginField{kFields[i].name, nullptr, kFields[i].type, kFields[i].length};
            }
        }
    };
    static Names const names;
    return &names.collection;
}

void fieldsOf(Attributes const& attributes, PluginField (&fields)[kFieldCount]) noexcept
{
    for (int32_t i = 0; i < kFieldCount; ++i)
    {
        fields[i] = PluginField{kFields[i].name, valuesOf(kFields[i], attributes), kFields[i].type, kFields[i].length};
    }
}

char const* readFields(
    PluginFieldCollection const* fields, FieldsOf origin, Attributes& attributes, Message& message) noexcept
{
    if (fields == nullptr || fields->nbFields < 0 || (fields->fields == nullptr && fields->nbFields > 0))
    {
        return "no attributes were given; sources and kernel_shape are required";
    }
    char const* const stale = origin == FieldsOf::kPlan ? "; the plan is from another version of the plugin" : "";
    attributes = Attributes{};
    bool seen[kFieldCount]{};
    for (int32_t i = 0; i < fields->nbFields; ++i)
    {
        PluginField const& given = fields->fields[i];
        char const* const name = given.name == nullptr ? "" : given.name;
        int32_t const index = indexOf(name);
        if (index == kFieldCount)
        {
            message.format("unknown attribute '%s'%s; known are", name, stale);
            for (Field const& known : kFields)
            {
                message.append(" %s", known.name);
            }
            return message.data();
        }
        if (seen[index])
        {
            return message.format("%s is given twice", name);
        }
        seen[index] = true;
        if (char const* const error = read(given, kFields[index], attributes, message))
        {
            return error;
        }
    }
    for (int32_t i = 0; i < kFieldCount; ++i)
    {
        if (!seen[i] && (kFields[i].required || origin == FieldsOf::kPlan))
        {
            return message.format("%s is missing%s", kFields[i].name, *stale != '\0' ? stale : "; it has no default");
        }
    }
    return checkAttributes(attributes, message.data(), Message::size());
}

void describe(Attributes const& attributes, char* text, std::size_t size) noexcept
{
    std::size_t used = 0;
    auto const append = [&](int32_t written)
    {
        if (written > 0)
        {
            used += static_cast<std::size_t>(written) < size - used ? written : size - used - 1;
        }
    };
    for (Field const& field : kFields)
    {
        append(std::snprintf(text + used, size - used, "%s%s", used == 0 ? "" : " ", field.name));
        auto const* const values = static_cast<char const*>(valuesOf(field, attributes));
        for (int32_t i = 0; i < field.length; ++i)
        {
            char const separator = i == 0 ? '=' : '/';
            if (field.type == kFloats)
            {
                float value;
                std::memcpy(&value, values + i * kValueSize, kValueSize);
                append(std::snprintf(text + used, size - used, "%c%.9g", separator, static_cast<double>(value)));
            }
            else
            {
                int32_t value;
                std::memcpy(&value, values + i * kValueSize, kValueSize);
                append(std::snprintf(text + used, size - used, "%c%d", separator, value));
            }
        }
    }
}

} // namespace msconv::plugin
