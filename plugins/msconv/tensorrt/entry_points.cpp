// What the library exports: a plugin registry calls these when it loads the library. exports.map hides the rest.
#include "registration.h"
#include "reporting.h"

#define MSCONV_EXPORT extern "C" __attribute__((visibility("default")))

#if MSCONV_PLUGIN_V3
#define MSCONV_GET_CREATORS getCreators
#else
#define MSCONV_GET_CREATORS getPluginCreators
#endif

MSCONV_EXPORT msconv::plugin::Creator* const* MSCONV_GET_CREATORS(int32_t& nbCreators)
{
    static msconv::plugin::Creator* const creators[] = {&msconv::plugin::creator()};
    msconv::plugin::withdraw();
    nbCreators = 1;
    return creators;
}

MSCONV_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    msconv::plugin::setLoggerFinder(finder);
}
